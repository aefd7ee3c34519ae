"""Sheet: one table of a report, shown in the terminal and in Markdown."""

from typing import NamedTuple

from rich.table import Column, Table
from rich.text import Text


class Sheet(NamedTuple):
    """A table of texts.

    Attributes:
        heading: what is measured, of which images.
        header: names of the columns; the first is of the rows' names.
        rows: a name, then numbers, the best of a column in **bold**.
    """

    heading: str
    header: list[str]
    rows: list[list[str]]

    def table(self) -> Table:
        """For the terminal."""
        first, *others = self.header
        columns = [Column(first, overflow="fold"), *(Column(name, justify="right") for name in others)]
        table = Table(*columns, title=Text(self.heading), title_justify="left")
        for name, *cells in self.rows:
            table.add_row(Text(name), *(Text(text, "bold" if bold else "") for text, bold in map(split_bold, cells)))
        return table

    def markdown(self) -> str:
        """Heading and table."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{self.heading}\n\n{table}"


def split_bold(cell: str) -> tuple[str, bool]:
    """Text of a cell, and whether it is bold."""
    return (cell[2:-2], True) if cell.startswith("**") else (cell, False)
