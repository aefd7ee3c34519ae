"""Reports of measured cells: tables (terminal, CSV, Markdown) and plots (PNG)."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Column, Table
from rich.text import Text

from ersde_lit.errors import needs_extra
from ersde_lit.files import replacing
from ersde_lit.metrics.protocol import title
from ersde_lit.sweeps.cells import Record

HIGHER_IS_BETTER = {"is", "precision", "recall"}


class Summary(NamedTuple):
    """Scores of several sets of seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Unbiased standard deviation over the sets; 0 for a single one."""
        n, mean = len(self.values), self.mean
        return math.sqrt(sum((value - mean) ** 2 for value in self.values) / (n - 1)) if n > 1 else 0.0

    def best(self, metric: str) -> float:
        """Best of the sets, as in EDM's protocol; NaN if one of them is."""
        if math.isnan(self.mean):
            return math.nan
        return max(self.values) if metric in HIGHER_IS_BETTER else min(self.values)

    def value(self, metric: str, best: bool) -> float:
        return self.best(metric) if best else self.mean

    def text(self, metric: str, best: bool) -> str:
        """Mean ± standard deviation (two digits of it), or the best."""
        value, std = self.value(metric, best), self.std
        if best or not std > 0 or not math.isfinite(std):
            return f"{value:.4g}"
        decimals = max(0, 1 - math.floor(math.log10(std)))
        return f"{value:.{decimals}f} ± {std:.{decimals}f}"


class Report:
    """Report of cells with the same protocol: a table a metric, a row a sampler, a column an NFE asked for.

    Args:
        records: cells, and images without NFE.
        metrics: which to show.
        best: whether to show the best of the sets of seeds rather than mean and standard deviation.
    """

    def __init__(self, records: Sequence[Record], metrics: Sequence[str], best: bool = False) -> None:
        self.records, self.metrics, self.best = [*records], [*metrics], best
        self.nfes = sorted({record["asked"] for record in records if record["nfe"] is not None})
        self.sets = max(Counter((r["sampler"], r["nfe"]) for r in records).values(), default=1)
        self.samplers = list(dict.fromkeys(r["sampler"] for r in records if r["nfe"] is not None))
        self.others = [record for record in records if record["nfe"] is None]

    def summary(self, metric: str, sampler: str, nfe: int) -> Summary | None:
        """Over all sets of seeds at exactly this NFE; None without any."""
        found = [r for r in self.records if (r["sampler"], r["nfe"]) == (sampler, nfe) and metric in r["scores"]]
        return Summary(tuple(record["scores"][metric] for record in found)) if found else None

    def rows(self, metric: str) -> list[list[str]]:
        """Rows of samplers, the best of a column in **bold**, then those without NFE."""
        shown = {(s, nfe): self._at(metric, s, nfe) for s in self.samplers for nfe in self.nfes}
        rows = [[sampler] for sampler in self.samplers]
        for nfe in self.nfes:
            values = {s: found[1].value(metric, self.best) for s in self.samplers if (found := shown[s, nfe])}
            choose = max if metric in HIGHER_IS_BETTER else min
            best = choose((value for value in values.values() if not math.isnan(value)), default=None)
            for row, sampler in zip(rows, self.samplers, strict=True):
                if (found := shown[sampler, nfe]) is None:
                    row.append("")
                    continue
                calls, summary = found
                text = summary.text(metric, self.best) + (f" ({calls} calls)" if calls != nfe else "")
                text += f" ({len(summary.values)} of {self.sets} sets)" if len(summary.values) < self.sets else ""
                row.append(f"**{text}**" if values[sampler] == best and len(values) > 1 else text)
        others = [(r["sampler"], r["scores"][metric]) for r in self.others if metric in r["scores"]]
        return rows + [[name, *[f"{value:.4g}"] * len(self.nfes)] for name, value in others]

    def _at(self, metric: str, sampler: str, nfe: int) -> tuple[int, Summary] | None:
        """Network calls made when this NFE was asked for (odd ones for Heun), and their score."""
        made = [r["nfe"] for r in self.records if (r["sampler"], r["asked"]) == (sampler, nfe)]
        found = self.summary(metric, sampler, made[0]) if made else None
        return (made[0], found) if found else None

    @property
    def header(self) -> list[str]:
        return ["sampler", *(f"NFE {nfe}" for nfe in self.nfes)]

    def tables(self) -> Iterable[Table]:
        """One table a metric, for the terminal."""
        for metric in self.metrics:
            yield _table(self.header, self.rows(metric), title(metric))

    def markdown(self, caption: str) -> str:
        """All tables, followed by the caption."""
        heads = [f"{title(metric)}\n\n" * (len(self.metrics) > 1) for metric in self.metrics]
        tables = [_markdown(self.header, self.rows(metric)) for metric in self.metrics]
        return "".join(f"{head}{table}\n\n" for head, table in zip(heads, tables, strict=True)) + f"{caption}\n"

    def csv(self) -> str:
        """One row a cell, with everything that affects its numbers."""
        return to_csv(self.records)

    def plot(self, path: Path, metric: str, name: str = "") -> None:
        """Metric over NFE, log-log; bars span the sets of seeds."""
        with needs_extra("plot", "the plot"):
            from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        ticks: set[int] = set()
        for number, sampler in enumerate(self.samplers):
            points = {r["nfe"] for r in self.records if r["sampler"] == sampler}
            line = {nfe: found for nfe in sorted(points) if (found := self.summary(metric, sampler, nfe))}
            values = [summary.value(metric, self.best) for summary in line.values()]
            low = [value - min(s.values) for value, s in zip(values, line.values(), strict=True)]
            high = [max(s.values) - value for value, s in zip(values, line.values(), strict=True)]
            marker = "os^vDP*X"[number // 10 % 8]
            axes.errorbar([*line], values, [low, high], label=sampler, marker=marker, markersize=4, linewidth=1.2)
            ticks |= line.keys()
        for record in self.others:
            if (value := record["scores"].get(metric)) is not None:
                axes.axhline(value, color="grey", linewidth=1, linestyle=":", label=record["sampler"])
        positive = not any(r["scores"][metric] <= 0 for r in self.records if metric in r["scores"])
        axes.set(xscale="log", yscale="log" if positive else "linear", xlabel="NFE", ylabel=title(metric), title=name)
        axes.set_xticks(sorted(ticks), map(str, sorted(ticks)))
        axes.minorticks_off()
        axes.legend(fontsize=8)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png")


class ImagesReport:
    """Report of images from disk: one row a set of images, one column a metric."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = [*records]
        self.metrics = list(dict.fromkeys(name for record in records for name in record["scores"]))

    @property
    def header(self) -> list[str]:
        return ["images", "number", *map(title, self.metrics)]

    def rows(self) -> list[list[str]]:
        return [
            [r["sampler"], f"{r['images']:,}", *(f"{r['scores'][metric]:.6g}" for metric in self.metrics)]
            for r in self.records
        ]

    def tables(self) -> Iterable[Table]:
        yield _table(self.header, self.rows())

    def markdown(self, caption: str) -> str:
        return f"{_markdown(self.header, self.rows())}\n\n{caption}\n"

    def csv(self) -> str:
        return to_csv(self.records)


def sizes(records: Sequence[Record]) -> str:
    """Sentence on the image sizes, by name if they differ; empty if they are not stored."""
    found = {record["sampler"]: size for record in records if (size := record.get("image_size"))}
    if len({*found.values()}) < 2:
        return "".join(f"Images: {size}." for size in {*found.values()})
    return f"Images: {'; '.join(f'{name} {size}' for name, size in found.items())}."


def to_csv(records: Sequence[Record]) -> str:
    """Records as CSV: sampler, NFE, seeds, number of images, scores, then the protocol and how images were made."""
    metrics = list(dict.fromkeys(name for record in records for name in record["scores"]))
    lines = []
    for record in records:
        first = {name: record.get(name) for name in ("sampler", "nfe", "seeds", "images", "image_size")}
        scores = {metric: record["scores"].get(metric) for metric in metrics}
        made: Mapping[str, Mapping[str, object]] = record["description"] or {}
        options = {f"option {name}": value for name, value in made.get("options", {}).items() if name != "nfe"}
        files = {f"sha256 {name}": value for name, value in made.get("checkpoints", {}).items()}
        protocol = {name: value for name, value in record["protocol"].items() if name not in {"versions", *metrics}}
        tools = {f"version {name}": value for name, value in record["protocol"]["versions"].items()}
        lines.append({**first, **scores, "seconds": record["seconds"], **options, **files, **protocol, **tools})
    names = list(dict.fromkeys(name for line in lines for name in line))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None) -> Table:
    columns = [Column(header[0]), *(Column(name, justify="right") for name in header[1:])]
    table = Table(*columns, title=caption, title_justify="left")
    for row in rows:
        table.add_row(*(Text(text[2:-2], "bold") if text.startswith("**") else Text(text) for text in row))
    return table


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
