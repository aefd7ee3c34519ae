"""File that `tune` writes: tables by NFE, with what they were learned for, how, and their scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ersde_lit.errors import UserError, in_short
from ersde_lit.files import disk_errors
from ersde_lit.solvers import SavedTables, Tableau, read_tables, write_tables

PIXELS = "pixels"
NO_MATTER = ("versions", "seeds")  # that may differ from one table to the next


class TablesFile:
    """Tables that are there already, and those that are learned now.

    Args:
        path: read if it is there; written by `keep` alone.

    Attributes:
        tables: by NFE.
        facts: what they were learned for, as `SavedTables.facts`; beside that "learning" by NFE, and "scores".

    Raises:
        UserError: there is something else at `path`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.tables: dict[int, Tableau] = {}
        self.facts: dict[str, Any] = {}
        self.learning: dict[str, Any] = {}
        self.scores: list[dict[str, Any]] = []
        self._known: dict[str, Any] | None = None  # facts of the file that is there
        if Path(path).exists():
            saved = read_tables(path)
            self._known = {**saved.facts}
            self.tables = {**saved.tables}
            learning, scores = self._known.get("learning", {}), self._known.get("scores", [])
            if not (isinstance(learning, dict) and isinstance(scores, list) and all(map(_is_score, scores))):
                raise UserError(f"--out {path} is no file that `tune` wrote; choose another name")
            self.learning, self.scores = {**learning}, [*scores]

    def set_facts(self, facts: dict[str, Any]) -> None:
        """Sets what the tables are learned for; raises UserError where the file's own facts differ."""
        for name, value in facts.items():
            if self._known is not None and name not in NO_MATTER and self._known.get(name) != value:
                here, there = in_short(value), in_short(self._known.get(name))
                raise UserError(
                    f"--out {self.path} holds tables of another command: their {name} is {there}, and here {here}; "
                    "choose another name"
                )
            self.facts[name] = value

    @property
    def saved(self) -> SavedTables:
        return SavedTables(self.tables, {**self.facts, "learning": self.learning, "scores": self.scores})

    def learned_in(self, features: str) -> bool:
        """Whether these features, or pixels, are part of the objective."""
        return features == self.facts["features"] or (features == PIXELS and PIXELS in self.facts["objective"])

    def keep(self, nfe: int, tableau: Tableau, how: dict[str, Any], write: bool = True) -> None:
        """Adds a table."""
        self.tables[nfe] = tableau
        self.learning[str(nfe)] = how
        self._write(write)

    def is_scored(self, nfe: int, images: int, features: set[str]) -> bool:
        """Whether there are scores of so many images in all these features."""
        return features <= {s["features"] for s in self.scores if (s["nfe"], s["images"]) == (nfe, images)}

    def keep_scores(self, scores: Sequence[dict[str, Any]], write: bool = True) -> None:
        """Replaces those of these NFEs."""
        new = {score["nfe"] for score in scores}
        self.scores = [*(score for score in self.scores if score["nfe"] not in new), *scores]
        self._write(write)

    def _write(self, write: bool) -> None:
        if write:
            with disk_errors(self.path):
                write_tables(self.path, self.saved)


def _is_score(value: Any) -> bool:
    return isinstance(value, dict) and {"sampler", "nfe", "images", "measure", "features", "value"} <= value.keys()
