"""Saved tables: samplers that were learned, one table a number of calls, as plain data that anybody can read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers.grids import check_nfe
from ersde_lit.solvers.sampler import TableSampler
from ersde_lit.solvers.tableau import SAME_LEVEL, Tableau, as_float64, check_lams

FAMILY = "ersde-lit tables "
FORMAT = f"{FAMILY}1"
_ROWS = {"r": 1, "c": 2, "b": 1, "corrector": 2, "calls": 1}  # fields with a row a step, and their dimensions


@dataclass(frozen=True, eq=False, repr=False)
class SavedTables:
    """A solver of one table a number of calls, each with noise levels of its own.

    Two are equal if their tables and facts are.

    Attributes:
        tables: by number of calls.
        facts: plain data (what JSON holds) about them: what they were learned for, and how. "network" is
            `ersde_lit.training.weights_digest` of it, "guidance" the options of the guidance by name.

    Raises:
        UserError: a table's shapes do not match, its numbers are not finite, or its levels do not descend.
    """

    tables: Mapping[int, Tableau]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tables:
            raise UserError("there are no tables")
        object.__setattr__(self, "tables", {n: _checked(n, self.tables[n]) for n in sorted(self.tables)})
        try:
            facts = json.loads(json.dumps(dict(self.facts)))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"facts must be plain data, as JSON holds it: {error}") from None
        object.__setattr__(self, "facts", facts)

    def tableau(self, lams: Any) -> Any:
        """The table whose noise levels are `lams`, to rounding, with its own; UserError where there is none."""
        lams = check_lams(lams)
        table = self._table(len(lams) - 1)
        differs = ~torch.isclose(lams, table.lams, rtol=SAME_LEVEL, atol=0)
        if differs.any():
            i = int(differs.int().argmax())
            raise UserError(
                f"the table of {table.nfe} calls is for its own noise levels alone: level {i} is {table.lams[i]:.6g}, "
                f"and here {lams[i]:.6g}; sample on its own grid, with a model that has these levels in its range"
            )
        return table

    def grid(self, n: int) -> Tensor:
        """The noise levels of the table of n calls; UserError, naming those that there are, if there is none."""
        check_nfe(n)
        return self._table(n).lams.clone()

    @property
    def sampler(self) -> TableSampler:
        """The sampler of these tables on their own grids."""
        return TableSampler(self, self.grid)

    @property
    def nfes(self) -> str:
        """The numbers of calls in words, as in "5, 6, 8"."""
        return ", ".join(map(str, self.tables))

    def digest(self, n: int) -> str:
        """SHA-256 of the table of n calls, without the facts: what determines images."""
        return hashlib.sha256(json.dumps(_plain(self._table(n))).encode()).hexdigest()

    def plain(self) -> dict[str, Any]:
        """The content of a file, as JSON has it; numbers are exact."""
        tables = {str(n): _plain(table) for n, table in self.tables.items()}
        return {"format": FORMAT, "facts": dict(self.facts), "tables": tables}

    @classmethod
    def of_plain(cls, plain: Any) -> "SavedTables":
        """The tables of `plain`, which is untrusted; UserError if it is something else, or damaged."""
        kind = plain.get("format") if isinstance(plain, Mapping) else None
        if not (isinstance(kind, str) and kind.startswith(FAMILY)):
            raise UserError("it holds no tables of samplers")
        if kind != FORMAT:
            raise UserError(f"its format is {kind[:40]!r}, and this version of ersde-lit reads {FORMAT!r}: update it")
        try:
            tables = {int(n): Tableau(**table) for n, table in plain["tables"].items()}
            if len(tables) < len(plain["tables"]):
                raise UserError("two of its tables are of the same number of calls")
            return cls(tables, plain.get("facts", {}))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"its tables are damaged: {str(error)[:120]}") from None

    def _table(self, n: int) -> Tableau:
        if n not in self.tables:
            raise UserError(f"there is no table of {n} calls, only of {self.nfes}")
        return self.tables[n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SavedTables) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(tuple(self.digest(n) for n in self.tables))

    def __repr__(self) -> str:
        return f"SavedTables of {self.nfes} calls"


def read_tables(path: str | Path) -> SavedTables:
    """The tables in a file; UserError if it is absent, damaged, of a later format or of something else."""
    try:
        plain = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is nothing at {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path} is damaged, truncated or no file of tables") from None
    try:
        return SavedTables.of_plain(plain)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_tables(path: str | Path, tables: SavedTables) -> None:
    """Replaces a file of tables as a whole; OSError where it cannot be written."""
    from ersde_lit.files import write_text  # needs packages that solvers do without

    write_text(path, json.dumps(tables.plain(), indent=1) + "\n")


def learned(path: str) -> TableSampler:
    """The sampler in a file of tables; YAML names it as a class.

    Args:
        path: file of tables.
    """
    return read_tables(path).sampler


def _checked(n: Any, table: Tableau) -> Tableau:
    """The table in float64 on the CPU; UserError where it is none of n steps."""
    try:
        lams = check_lams(table.lams)
        if n != len(lams) - 1:
            raise UserError(f"its {len(lams)} lams are not those of {n} calls")
        rows = {name: _rows(name, getattr(table, name), n, ndim) for name, ndim in _ROWS.items()}
    except UserError as error:
        raise UserError(f"the table of {n} calls: {error}") from None
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # what torch says of other lists
        raise UserError(f"the table of {n} calls holds no numbers: {str(error).splitlines()[0][:120]}") from None
    if table.history not in ("x0", "d"):
        raise UserError(f"the table of {n} calls: its history must be x0 or d, not {table.history!r}")
    return Tableau(lams, history=table.history, **rows)


def _rows(name: str, value: Any, n: int, ndim: int) -> Any:
    if value is None and name in Tableau._field_defaults:
        return None
    rows = as_float64(value)
    if rows.ndim != ndim or len(rows) != n or not rows.numel():
        raise UserError(f"its {name} has the shape {[*rows.shape]}, not a row for each of {n} steps")
    if not rows.isfinite().all() or (name == "b" and (rows < 0).any()) or (name == "calls" and (rows <= 0).any()):
        raise UserError(f"its {name} must be finite{', and not negative' if ndim == 1 and name != 'r' else ''}")
    if ndim == 2 and rows.triu(1 if name == "c" else 2).any():  # a corrector has the new value too
        raise UserError(f"its {name} weighs a history that does not exist yet")
    return rows


def _plain(table: Tableau) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in table._asdict().items()}
