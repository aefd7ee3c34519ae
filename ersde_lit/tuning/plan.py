"""Noise levels for a denoiser by dynamic programming over one fine run of it, without gradients.

As GITS (Chen et al. 2024, https://arxiv.org/abs/2405.11326), but the leaps whose errors are added up are those of the
sampler's own rows of order 2, so a leap depends on the level before it too; and the first level is chosen with them,
by what starting there from pure noise misses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import ERSDE, grids, sample
from ersde_lit.solvers.sampler import adapt_grid
from ersde_lit.tuning.problem import Problem
from ersde_lit.tuning.rows import theory

FINE = 64  # levels of the run, and calls of the denoiser


def plan_levels(
    problem: Problem,
    nfes: Iterable[int],
    seeds: Sequence[int] = range(64),
    fine: int = FINE,
    nodes: float = 2.0,
    share: float = 1.0,
) -> dict[int, Tensor]:
    """Levels (nfe + 1,) for each number of calls, the last 0, chosen among those of one fine run of the ODE.

    The cost of a leap is the root mean square of what it misses, times how much of an error at its end is left at 0.

    Args:
        problem: its objective is not asked.
        nfes: numbers of calls, below `fine`.
        seeds: of the run, all in one batch.
        fine: calls of the run.
        nodes: s of the rows of the leaps (see `rows.theory`).
        share: power of what is left of an error.

    Raises:
        UserError: more calls than the run has levels.
    """
    nfes = [*nfes]
    if max(nfes) >= fine:
        raise UserError(f"levels for {max(nfes)} calls need a run of more than {fine} levels")
    lams = adapt_grid(grids.edm(fine, rho=12.0), problem.denoiser)
    gram = _gram(problem, lams, seeds)
    costs, first = _leaps(lams[:-1], gram, nodes, share)
    return {n: lams[_cheapest(costs, first, n)] for n in nfes}
