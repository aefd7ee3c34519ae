"""Plot of an analysis: panels over the noise axis, sampling from left to right."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ersde_lit.analysis.report import MARK, QUANTITIES, Analysis, Curve, phi_name
from ersde_lit.solvers import noise_scale

PANELS = ("euler_coefficient", "b_relative", "kappa", "error_left", "one_step_w2", "w2", "one_step_rms", "rms")
_DECADES = 5  # of errors shown below the largest
_MARKERS = "osD^vP*X<>"


def draw(analysis: Analysis) -> Figure:
    """Two rows of four panels: what the noise scales and tables are; what errors the solvers make.

    A step is drawn at the level it starts from, since the last goes to 0. Every noise scale has a colour, which the
    solvers that use it share; solvers with no such choice are dashed.
    """
    figure = Figure(figsize=(18, 8.8), layout="constrained")
    figure.suptitle(analysis.title, fontsize=14)
    panels = figure.subplots(2, 4, sharex=True)
    styles = _styles(analysis.curves)
    handles: dict[str, Any] = {}
    for axes, quantity in zip(panels.flat, PANELS, strict=True):
        for curve in analysis.of(quantity):
            (line,) = axes.plot(*_points(analysis, curve), label=curve.name, **styles[curve.name])
            handles.setdefault(curve.name, line)
        _dress(axes, analysis, quantity)
    panels[0, 0].invert_xaxis()
    for axes in panels[-1]:
        axes.set_xlabel("λ at which the step starts", fontsize=11)
    order = sorted(handles, key=lambda name: styles[name]["marker"] != "")  # noise scales first
    columns = max(1, min(len(order), 1700 // (60 + 8 * max(map(len, order)))))  # as many as fit, in pixels
    figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=columns, fontsize=11)
    return figure


def save(analysis: Analysis, path: Path) -> None:
    """As a PNG, marked as an analysis, in a style of its own whatever the user's matplotlibrc."""
    with matplotlib.rc_context(rc=matplotlib.rcParamsDefault):
        draw(analysis).savefig(path, dpi=100, format="png", metadata=MARK)


def _styles(curves: list[Curve]) -> dict[str, dict[str, Any]]:
    """Of each curve, by name, the same in all panels: colour by noise scale, marker by the rest of a solver's name."""
    colours: Iterator[Any] = cycle(matplotlib.colormaps["tab10"].colors)  # type: ignore[attr-defined]
    of_colour: dict[str, Any] = {}
    of_marker: dict[str, str] = {}
    styles = {}
    for curve in curves:
        of_phi = curve.phi is not None and curve.name == phi_name(curve.phi)
        solver = curve.name.removesuffix(f" {curve.phi}")
        if (key := curve.phi or curve.name) not in of_colour:
            of_colour[key] = next(colours)
        if not of_phi:
            of_marker.setdefault(solver, _MARKERS[len(of_marker) % len(_MARKERS)])
        styles[curve.name] = {
            "color": of_colour[key],
            "marker": "" if of_phi else of_marker[solver],
            "linestyle": "--" if curve.phi is None else "-",
            "markersize": 5,
            "alpha": 0.85,
        }
    return styles


def _points(analysis: Analysis, curve: Curve) -> tuple[Any, Any]:
    starts = analysis.lams[:-1]
    if curve.quantity == "kappa" and curve.phi is not None and len(starts) > 1:  # a function of lam, not of steps
        starts = torch.logspace(float(starts[0].log10()), float(starts[-1].log10()), 200, dtype=torch.float64)
        return starts.numpy(), noise_scale(curve.phi).kappa(starts).numpy()
    return starts.numpy(), curve.values.numpy()


def _dress(axes: Axes, analysis: Analysis, quantity: str) -> None:
    axes.set_title(analysis.heading(quantity), fontsize=11)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=9)
    if QUANTITIES[quantity].log:
        values = torch.cat([curve.values for curve in analysis.of(quantity)])
        positive = values[values > 0]
        if len(positive):
            axes.set_yscale("log")
            largest = float(positive.max())
            axes.set_ylim(max(float(positive.min()), largest * 10**-_DECADES) / 1.5, largest * 1.5)
