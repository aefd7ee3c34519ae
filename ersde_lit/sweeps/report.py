"""Reports of measured cells: tables of means and spreads, headings that say of which images, CSV."""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ersde_lit.metrics.protocol import Protocol, title
from ersde_lit.sampling.seeds import parse_seeds
from ersde_lit.sweeps.cells import REAL, Record
from ersde_lit.sweeps.sheet import Sheet

HIGHER_IS_BETTER = {"is", "precision", "recall"}
BIASED = ": FID biased upwards"  # where there are fewer images than beside them


class Summary(NamedTuple):
    """Scores of several sets of seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        first = self.values[0]  # of equal values, exactly these
        return first + sum(value - first for value in self.values) / len(self.values)

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
        best: whether to show the best of the sets of seeds rather than mean and standard deviation.
    """

    def __init__(
        self, records: Sequence[Record], metrics: Sequence[str], protocol: Protocol, best: bool = False
    ) -> None:
        self.records, self.metrics, self.protocol, self.best = [*records], [*metrics], protocol, best
        self.nfes = sorted({record["asked"] for record in records if record["nfe"] is not None})
        self.sets = max(Counter((r["sampler"], r["nfe"]) for r in records).values(), default=1)
        self.samplers = list(dict.fromkeys(r["sampler"] for r in records if r["nfe"] is not None))
        self.others = [record for record in records if record["nfe"] is None]
        self.images = max((len(parse_seeds(r["seeds"])) for r in records if r["seeds"] is not None), default=0)

    def heading(self, metric: str) -> str:
        """The metric, the number of images on both sides, data and features."""
        how = self.protocol.scores
        to = "" if metric == "is" else f" to {how['reference']}"
        part = f" ({how[metric]})" if metric not in ("fid", "is") else ""  # not of all images
        return f"{title(metric)} of {self.images:,} samples{to}, {how['features']}{part}"

    @property
    def spread(self) -> str:
        """What a number is over several sets of seeds; empty for a single one."""
        how = "the best" if self.best else "mean and standard deviation"
        return f"{how} of {self.sets} sets" if self.sets > 1 else ""

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
        others = [(self.name(r, metric), r["scores"][metric]) for r in self.others if metric in r["scores"]]
        return rows + [[name, *[f"{value:.4g}"] * len(self.nfes)] for name, value in others]

    def _at(self, metric: str, sampler: str, nfe: int) -> tuple[int, Summary] | None:
        """Network calls made when this NFE was asked for (odd ones for Heun), and their score."""
        found = [r for r in self.records if r["sampler"] == sampler]
        made = [r["nfe"] for key in ("asked", "nfe") for r in found if r[key] == nfe]
        summary = self.summary(metric, sampler, made[0]) if made else None
        return (made[0], summary) if summary else None

    @property
    def header(self) -> list[str]:
        return ["sampler", *(f"NFE {nfe}" for nfe in self.nfes)]

    def name(self, record: Record, metric: str) -> str:
        """Name of images without NFE, with what is to be known before their score is compared with the samples'."""
        bias = BIASED if metric == "fid" and record["images"] < self.images else ""
        notes = [f"{record['images']:,} images{bias}"] if record["images"] != self.images else []
        notes += ["one set"] if self.sets > 1 else []
        return record["sampler"] + (f" ({'; '.join(notes)})" if notes else "")

    def leaders(self) -> list[str]:
        """The best score of each metric that any sampler has at any NFE, in words."""
        words = []
        for metric in self.metrics:
            cells = ((self._at(metric, s, nfe), s, nfe) for s in self.samplers for nfe in self.nfes)
            known = [(at[1], sampler, nfe) for at, sampler, nfe in cells if at and not math.isnan(at[1].mean)]
            if len(known) > 1:
                which, choose = ("Highest", max) if metric in HIGHER_IS_BETTER else ("Lowest", min)
                summary, sampler, nfe = choose(known, key=lambda cell: cell[0].value(metric, self.best))
                text = summary.text(metric, self.best)
                words.append(f"{which} {title(metric)}: {text}, {sampler} at NFE {nfe}")
        return words

    def sheets(self) -> dict[str, Sheet]:
        """A table a metric."""
        return {metric: Sheet(self.heading(metric), self.header, self.rows(metric)) for metric in self.metrics}


class ImagesReport:
    """Report of images from disk: one row a set of images, one column a metric."""

    def __init__(self, records: Sequence[Record], protocol: Protocol) -> None:
        self.records, self.protocol = [*records], protocol
        self.metrics = list(dict.fromkeys(name for record in records for name in record["scores"]))

    @property
    def header(self) -> list[str]:
        return ["images", "number", *map(title, self.metrics)]

    def rows(self) -> list[list[str]]:
        most = max(record["images"] for record in self.records)
        rows = []
        for r in self.records:
            few = r["sampler"] == REAL and "fid" in self.metrics and r["images"] < most
            numbers = [f"{r['images']:,}", *(f"{r['scores'][metric]:.6g}" for metric in self.metrics)]
            rows.append([r["sampler"] + f" (fewer images{BIASED})" * few, *numbers])
        return rows

    def sheets(self) -> dict[str, Sheet]:
        """One table."""
        how = self.protocol.scores
        heading = f"Images compared with {how['reference']}, {how['features']}"
        return {"": Sheet(heading, self.header, self.rows())}


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
