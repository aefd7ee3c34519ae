"""Samplers: a solver with its grid, fitted to the denoiser at hand, from noise to images in nfe calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ersde_lit.solvers import grids
from ersde_lit.solvers.ersde import ERSDE
from ersde_lit.solvers.grids import Grid, check_nfe
from ersde_lit.solvers.loop import Callback, Denoise, StepNoise, sample
from ersde_lit.solvers.tableau import Solver, check_lams


class Noise(StepNoise, Protocol):
    """What a sampler starts from and steps with: `SeededNoise`, or anything alike."""

    def initial(self) -> Tensor:
        """Standard normal noise [B, ...]; its shape, dtype and device are the state's."""
        ...


class Sampler(Protocol):
    """From noise to x0 in `nfe` calls of a denoiser; what callbacks and commands are given."""

    def __call__(
        self,
        denoiser: Denoise,
        noise: Noise,
        nfe: int,
        labels: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class TableSampler:
    """Any solver with a table, on any grid.

    The grid is fitted to what the denoiser says of itself, if it does: see `fit`. A run starts at
    ``lams[0] * noise.initial()`` and builds no autograd graph.

    Attributes:
        solver: ERSDE, DDIM, DPMSolverPP, ...
        grid: n calls -> lams, by default `grids.edm`; ``partial(grids.edm, rho=5)`` changes one of its parameters.
    """

    solver: Solver
    grid: Grid = grids.edm

    def lams(self, denoiser: Any, nfe: int) -> Tensor:
        """The (nfe+1,) noise levels of a run."""
        check_nfe(nfe)
        with torch.device("cpu"):  # whatever the default device: tables are made on the host
            return fit(self.grid(nfe), denoiser)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoise,
        noise: Noise,
        nfe: int,
        labels: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """x0 [B, ...] in exactly `nfe` calls; raises ValueError where grid, solver and denoiser do not fit together."""
        lams = self.lams(denoiser, nfe)
        with torch.device("cpu"):
            tableau = self.solver.tableau(lams)
        y = noise.initial() * float(tableau.lams[0])
        return sample(denoiser, tableau, y, noise=noise, labels=labels, callback=callback)


def fit(lams: Tensor, denoiser: Any) -> Tensor:
    """`lams` brought into the range of `denoiser` and onto its levels, as many as before.

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
        raise ValueError(f"the grid, {finite[0]:.6g} to {finite[-1]:.6g}, misses the denoiser's {lam_max} to {lam_min}")
    elif high < finite[0] or low > finite[-1]:
        position = (finite / finite[-1]).log() / (finite[0] / finite[-1]).log()
        finite = (low * (high / low) ** position).clamp(low, high)
    levels = getattr(denoiser, "levels", None)
    if levels is not None:
        finite = _snap(finite, levels)
    return check_lams(torch.cat([finite, lams[len(finite) :]]))


def _snap(lams: Tensor, levels: Tensor) -> Tensor:
    levels = levels.to("cpu", torch.float64).sort(descending=True).values
    if len(lams) > len(levels):
        raise ValueError(f"a model of {len(levels)} noise levels cannot be sampled at {len(lams)} of them; lower nfe")
    nearest = (lams.log().unsqueeze(1) - levels.log()).abs().argmin(1)
    # Strictly ascending indices, moving as few as possible: nearest - order may only rise, up to what is left.
    order = torch.arange(len(lams))
    return levels[(nearest - order).cummax(0).values.clamp(max=len(levels) - len(lams)) + order]


def default(nfe: int) -> TableSampler:
    """The sampler used when nothing is said.

    Up to 10 calls order 2 with corrector 2 and nodes asinh(lam / 0.5), above order 3 with corrector 3, both with
    er_sde_5 on the EDM grid. Exact 2-Wasserstein error on 16 Gaussian modes with std 1 to 0.01, by number of calls:

        calls                                6      8     10      20       50
        order 2 + corrector 2, nodes 0.5   .23    .11   .072    .018   9.0e-4
        order 3 + corrector 3              .46    .23   .090   .0069   4.4e-4
        published order 3                  .52    .33    .21    .037   4.6e-3
        DPM-Solver++(2M)                   .19    .24    .23    .067   8.8e-3

    FID of a network trained on Fashion-MNIST (tools/results/fashion_mnist.md), where noise mends the network's own
    errors; UniPC-2 (.18) is best there at 5 calls, and SDE-DPM-Solver++(2M) from 10 on:

        calls                                5     10     20     50
        order 2 + corrector 2, nodes 0.5   .41    .17    .31    .36
        order 3 + corrector 3             1.70    .23    .33    .36
        published order 3                 1.99    .32    .29    .35
        DPM-Solver++(2M)                   .20    .28    .39    .40
        SDE-DPM-Solver++(2M)               .36    .10    .17    .15
    """
    check_nfe(nfe)
    if nfe <= 10:
        return TableSampler(ERSDE(2, "er_sde_5", corrector=2, nodes=0.5))
    return TableSampler(ERSDE(3, "er_sde_5", corrector=3))
