"""Plot of a report: a metric over NFE, a line a sampler."""

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ersde_lit.files import replacing
from ersde_lit.metrics.protocol import title
from ersde_lit.sweeps.report import Report

MARKERS = "os^vDP*X"
COLOURS = 10
LINE = 88  # characters that fit above the plot or below it


def draw(report: Report, metric: str) -> Figure:
    """Log-log; bars span the sets of seeds; a horizontal line is of real images."""
    figure = Figure((7.5, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, Any] = {}
    for number, sampler in enumerate(report.samplers):
        points = {r["nfe"] for r in report.records if r["sampler"] == sampler}
        line = {nfe: found for nfe in sorted(points) if (found := report.summary(metric, sampler, nfe))}
        values = [summary.value(metric, report.best) for summary in line.values()]
        low = [value - min(s.values) for value, s in zip(values, line.values(), strict=True)]
        high = [max(s.values) - value for value, s in zip(values, line.values(), strict=True)]
        style: Any = {"marker": MARKERS[number // COLOURS % len(MARKERS)], "markersize": 4, "linewidth": 1.2}
        lines[sampler] = axes.errorbar([*line], values, [low, high], capsize=3, **style)
    for record in report.others:
        if (value := record["scores"].get(metric)) is not None:
            lines[report.name(record, metric)] = axes.axhline(value, color="grey", linewidth=1, linestyle=":")
    least = min((s for r in report.records if math.isfinite(s := r["scores"].get(metric, math.nan))), default=0)
    axes.set(xscale="log", yscale="log" if least > 0 else "linear", xlabel="NFE", ylabel=title(metric))
    which = f"{'best' if report.best else 'mean'} of {report.sets} sets of seeds, bars from the lowest to the highest"
    headings = [report.heading(metric), which][: 1 + (report.sets > 1)]
    axes.set_title("\n".join(textwrap.fill(heading, LINE) for heading in headings), fontsize=10)
    axes.grid(alpha=0.3)
    _ticks(axes, report.nfes)
    columns = max(1, min(len(lines), LINE // (8 + max(map(len, lines)))))
    figure.set_figheight(5 + 0.2 * -(-len(lines) // columns))
    figure.legend([*lines.values()], [*lines], loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def save(report: Report, metric: str, path: Path) -> None:
    """As a PNG, in a style of its own whatever the user's matplotlibrc."""
    with matplotlib.rc_context(rc=matplotlib.rcParamsDefault), replacing(path) as temporary:
        matplotlib.rcParams["text.parse_math"] = False  # a dollar in a name is no formula
        draw(report, metric).savefig(temporary, dpi=150, format="png")


def _ticks(axes: Axes, nfes: Iterable[int]) -> None:
    """Plain numbers, several of them on either axis."""
    apart: list[int] = []
    for nfe in nfes:
        if not apart or nfe > 1.06 * apart[-1]:
            apart.append(nfe)
    axes.set_xticks(apart, map(str, apart))
    axes.xaxis.set_minor_locator(NullLocator())
    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        within = MaxNLocator(6) if high < 10 * low else LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))
        axes.yaxis.set_major_locator(within)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
