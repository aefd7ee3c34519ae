"""Samplers: a solver and its grid, adapted to the denoiser, from noise to x0 in nfe calls."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import grids
from ersde_lit.solvers.grids import Grid, check_nfe
from ersde_lit.solvers.loop import Callback, Denoise, StepNoise, sample
from ersde_lit.solvers.tableau import SAME_LEVEL, Solver, Tableau, as_float64, check_lams, with_mean


class Noise(StepNoise, Protocol):
    """Noise of the start and of each step of a sampler, such as `SeededNoise`."""

    def initial(self) -> Tensor:
        """Standard normal noise [B, ...]; its shape, dtype and device are the state's."""
        ...


class Sampler(ABC):
    """Base class of samplers: from noise to x0 in `nfe` calls of a denoiser.

    Attributes:
        calls_a_step: 1, or 2 for methods that call the denoiser at both ends of a step.
    """

    calls_a_step = 1

    def calls(self, nfe: int) -> int:
        """The calls made when asked for `nfe`: as many, or with two calls a step the largest odd number up to it."""
        check_nfe(nfe)
        return nfe if self.calls_a_step == 1 else nfe - 1 + nfe % 2

    @abstractmethod
    def __call__(
        self, denoiser: Denoise, noise: Noise, nfe: int, labels: Tensor | None = None, callback: Callback | None = None
    ) -> Tensor:
        """x0 [B, ...] in ``calls(nfe)`` calls.

        Args:
            denoiser: (y, lam, labels) -> x0.
            noise: the start is its `initial` noise times the largest noise level.
            nfe: number of network calls, at least 1.
            labels: int64 classes [B], -1: unconditional; None: the denoiser is called without.
            callback: called as (i, lam, y, x0) after call i.

        Raises:
            UserError: grid, solver and denoiser do not fit together.
            FloatingPointError: an x0 was not finite; names the first such step and its lam.
        """


@dataclass(frozen=True)
class TableSampler(Sampler):
    """A solver with a tableau, on any grid.

    The grid is adapted to the denoiser's range and levels: see `adapt_grid`. A run starts at
    ``lams[0] * noise.initial()`` and builds no autograd graph.

    Attributes:
        solver: ERSDE, DDIM, DPMSolverPP, ...
        grid: n calls -> lams, by default `grids.edm`; ``partial(grids.edm, rho=5)`` changes one of its parameters.
        add_mean: whether the first x0 is added to the start, which as pure noise lacks the data's mean: see
            `with_mean`. Not for solvers in slopes, ipndm and deis.
    """

    solver: Solver
    grid: Grid = grids.edm
    add_mean: bool = False

    def lams(self, denoiser: Any, nfe: int) -> Tensor:
        """The (nfe+1,) noise levels of a run."""
        check_nfe(nfe)
        with torch.device("cpu"):  # whatever the default device: tables are made on the host
            return adapt_grid(self.grid(nfe), denoiser)

    def table(self, denoiser: Any, nfe: int) -> Tableau:
        """The table of a run; UserError where grid, solver and denoiser do not fit together."""
        lams = self.lams(denoiser, nfe)
        with torch.device("cpu"):
            tableau: Tableau = self.solver.tableau(lams)
        _check_told(tableau, denoiser)
        return with_mean(tableau) if self.add_mean else tableau

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoise, noise: Noise, nfe: int, labels: Tensor | None = None, callback: Callback | None = None
    ) -> Tensor:
        tableau = self.table(denoiser, nfe)
        y = noise.initial() * float(tableau.lams[0])
        return sample(denoiser, tableau, y, noise=noise, labels=labels, callback=callback)


def adapt_grid(lams: Tensor, denoiser: Any) -> Tensor:
    """Grid `lams` mapped into the range of `denoiser` and onto its levels, of the same length.

    Where its lam_min or lam_max cuts the grid, all of the grid is mapped linearly in ln lam so that its end meets the
    limit. For a discrete-time denoiser each lam is then moved to a level of its own, the nearest where possible. A
    final 0 stays 0. Attributes that the denoiser lacks limit nothing.

    Raises:
        ValueError: the denoiser has fewer levels than the grid, or none of its range.
    """
    lams = check_lams(lams)
    finite = lams[lams > 0]
    lam_min, lam_max = float(getattr(denoiser, "lam_min", 0)), float(getattr(denoiser, "lam_max", math.inf))
    low, high = max(float(finite[-1]), lam_min), min(float(finite[0]), lam_max)
    if len(finite) == 1:
        finite = finite.clamp(lam_min, lam_max)
    elif low >= high:
        raise UserError(f"the grid, {finite[0]:.6g} to {finite[-1]:.6g}, misses the denoiser's {lam_max} to {lam_min}")
    elif high < finite[0] or low > finite[-1]:
        position = (finite / finite[-1]).log() / (finite[0] / finite[-1]).log()
        finite = (low * (high / low) ** position).clamp(low, high)
    levels = getattr(denoiser, "levels", None)
    if levels is not None:
        finite = _snap(finite, levels)
    return check_lams(torch.cat([finite, lams[len(finite) :]]))


def _check_told(tableau: Tableau, denoiser: Any) -> None:
    """Raises UserError where a table tells the denoiser a level outside its range."""
    if tableau.calls is None:
        return
    low, high = float(getattr(denoiser, "lam_min", 0)), float(getattr(denoiser, "lam_max", math.inf))
    outside = (tableau.calls < low * (1 - SAME_LEVEL)) | (tableau.calls > high * (1 + SAME_LEVEL))
    if outside.any():
        told = float(tableau.calls[outside][0])
        raise UserError(f"the table tells the denoiser level {told:.6g}, outside its range, {high:.6g} to {low:.6g}")


def _snap(lams: Tensor, levels: Tensor) -> Tensor:
    levels = as_float64(levels).sort(descending=True).values
    if len(lams) > len(levels):
        raise UserError(f"a model of {len(levels)} noise levels cannot be sampled at {len(lams)} of them; lower nfe")
    nearest = (lams.log().unsqueeze(1) - levels.log()).abs().argmin(1)
    # Strictly ascending indices, moving as few as possible: nearest - order may only rise, up to what is left.
    order = torch.arange(len(lams))
    return levels[(nearest - order).cummax(0).values.clamp(max=len(levels) - len(lams)) + order]
