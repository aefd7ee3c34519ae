"""Files of an analysis: a plot, and its numbers as CSV and Markdown."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.files import replacing, write_text

MARK = {"made by": "ersde_lit analyze"}  # in the picture
MADE_BY = "Made by `python -m ersde_lit analyze"  # in the Markdown
COLUMNS = ["quantity", "curve", "step", "lam", "lam_next", "value"]


class Quantity(NamedTuple):
    title: str
    log: bool  # how it is drawn


QUANTITIES = {
    "euler_coefficient": Quantity("Euler (FEI) coefficient 1 − φ(λₜ) / φ(λₛ)", log=False),
    "b": Quantity("injected noise b", log=True),
    "b_relative": Quantity("injected noise b / λₜ", log=False),
    "kappa": Quantity("κ = d ln φ / d ln λ", log=False),
    "error_left": Quantity("left in x0 of a denoiser's error made here", log=True),
    "one_step_w2": Quantity("Gaussian data: W2 of one step alone", log=True),
    "w2": Quantity("Gaussian data: W2 of the run so far", log=True),
    "one_step_rms": Quantity("RMS of one step alone", log=True),
    "rms": Quantity("RMS of the run so far", log=True),
}


def phi_name(phi: str) -> str:
    """How a noise scale is called among solvers."""
    return f"phi {phi}"


class Curve(NamedTuple):
    """A quantity step by step: values (N,), NaN where it is not defined.

    Attributes:
        name: of the noise scale or solver.
        phi: the name of its noise scale, if it has one.
    """

    quantity: str
    name: str
    values: Tensor
    phi: str | None = None


@dataclass
class Analysis:
    """Curves on one grid.

    Attributes:
        lams: (N+1,) the grid.
        title: what was analysed, in a few words.
        paths: what the errors of paths ("one_step_rms", "rms") were measured on.
        notes: paragraphs that say what it takes to understand and repeat the numbers.
    """

    lams: Tensor
    title: str
    paths: str
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, quantity: str) -> list[Curve]:
        return [curve for curve in self.curves if curve.quantity == quantity]

    def heading(self, quantity: str) -> str:
        title = QUANTITIES[quantity].title
        return f"{self.paths}: {title}" if quantity in ("one_step_rms", "rms") else title

    def csv(self) -> str:
        """A row a value: quantity, curve, step, the noise levels it goes from and to, value (empty where undefined)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        levels = [f"{lam:.8g}" for lam in self.lams.tolist()]
        for curve in self.curves:
            for i, value in enumerate((curve.values + 0.0).tolist()):  # no -0
                number = "" if math.isnan(value) else f"{value:.8g}"
                writer.writerow([curve.quantity, curve.name, i, levels[i], levels[i + 1], number])
        return text.getvalue()

    def markdown(self) -> str:
        """Where each solver loses, and a table a quantity with a row a step."""
        lines = [f"# {self.title}", "", *self.summary()]
        for quantity in QUANTITIES:
            if curves := self.of(quantity):
                lines += ["", f"## {self.heading(quantity)}", "", *self._table(curves)]
        return "\n".join([*lines, "", *(line for note in self.notes for line in (note, ""))])

    def summary(self) -> list[str]:
        """Where each solver loses, as lines of a table."""
        lines = ["| Gaussian data | W2 at the end | largest of one step | on the step |", "|---|---:|---:|---|"]
        for alone, run in zip(self.of("one_step_w2"), self.of("w2"), strict=True):
            i = int(alone.values.argmax())
            lines.append(f"| {run.name} | {run.values[-1]:.3g} | {alone.values[i]:.3g} | {self._step(i)} |")
        return lines

    def _table(self, curves: list[Curve]) -> list[str]:
        lines = ["| λ | " + " | ".join(curve.name for curve in curves) + " |", "|---|" + "---:|" * len(curves)]
        for i in range(len(self.lams) - 1):
            values = (float(curve.values[i] + 0.0) for curve in curves)
            cells = ("" if math.isnan(value) else f"{value:.3g}" for value in values)
            lines.append(f"| {self._step(i)} | " + " | ".join(cells) + " |")
        return lines

    def _step(self, i: int) -> str:
        return f"{self.lams[i]:.4g} → {self.lams[i + 1]:.4g}"


class Output:
    """Three files of one name, each replaced as a whole.

    Args:
        out: a name that ends in .png, with a .csv and a .md beside it; or a folder, for analysis.png and its like.

    Raises:
        ValueError: another ending, or a file there that no analysis has written.
    """

    def __init__(self, out: str | Path):
        target = Path(out)
        if target.is_dir() or not target.suffix:
            if target.is_file():
                raise UserError(f"--out {out} is a file; name a folder, or a file that ends in .png")
            target /= "analysis.png"
        elif target.suffix.lower() != ".png":
            raise UserError(f"--out {out}: name a folder, or a file that ends in .png")
        self.png, self.csv, self.md = target, target.with_suffix(".csv"), target.with_suffix(".md")
        for path in (self.png, self.csv, self.md):
            if path.exists() and not _written_by_analysis(path):
                raise UserError(f"{path} exists and no analysis has made it, so it stays; choose another --out")

    def write(self, analysis: Analysis, draw: Callable[[Path], object] | None) -> None:
        """Makes the folder if need be; ``draw(path)`` saves the picture; None: there is none."""
        self.png.parent.mkdir(exist_ok=True)
        if draw is not None:
            with replacing(self.png) as temporary:
                draw(temporary)
        write_text(self.csv, analysis.csv())
        write_text(self.md, analysis.markdown())


def _written_by_analysis(path: Path) -> bool:
    try:
        if path.suffix not in (".csv", ".md"):
            with Image.open(path, formats=["png"]) as image:
                return MARK.items() <= image.info.items()
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # UnicodeDecodeError is a ValueError
        return False
    return text.startswith(",".join(COLUMNS) + "\n") if path.suffix == ".csv" else MADE_BY in text
