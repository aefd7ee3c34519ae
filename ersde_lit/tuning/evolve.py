"""Learning of a table without gradients, by CMA-ES over a few directions of its parameters.

For networks that memory or guidance gives no gradients through. CMA-ES is Hansen's (https://arxiv.org/abs/1604.00772),
of the package `cmaes` (extra `tune`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ersde_lit.errors import needs_extra
from ersde_lit.tuning.learned import LearnedTable
from ersde_lit.tuning.problem import LEARNING, Problem


def evolve(
    table: LearnedTable, problem: Problem, evaluations: int = 200, samples: int = 1000, batch: int = 200, seed: int = 0
) -> None:
    """Moves `table` along `directions` to where the objective of the first learning seeds is least, in place.

    All candidates are judged on the same noise. What is kept is the mean of the last population, which has seen more
    noise than the best of it.

    Args:
        evaluations: runs of the sampler on all samples, about.
        samples: learning seeds.
        batch: seeds at a time.
        seed: of the search.
    """
    with needs_extra("tune", "Learning without gradients"):
        from cmaes import CMA

    along = directions(table)
    if not len(along):
        return
    origin = _vector(table)
    search = CMA(mean=np.zeros(len(along)), sigma=0.5, seed=seed)
    for _ in range(max(1, evaluations // search.population_size)):
        population = [search.ask() for _ in range(search.population_size)]
        values = []
        for point in population:
            _move(table, origin + torch.from_numpy(point) @ along)
            try:
                value = float(problem.scores(table.tableau(), LEARNING[:samples], batch).mean())
            except FloatingPointError:
                value = float("inf")
            values.append(value)
        worst = max((v for v in values if np.isfinite(v)), default=0.0)
        search.tell([(x, v if np.isfinite(v) else worst + 1) for x, v in zip(population, values, strict=True)])
    _move(table, origin + torch.from_numpy(search.mean) @ along)


def directions(table: LearnedTable) -> Tensor:
    """(k, P) directions in the parameters that `table` learns, each of a length that is worth a try: the first level,
    the length of all steps and its trend, noise and its trend, how far x0 is extrapolated, the sum of the first row,
    the levels told."""
    n = table.nfe
    trend = torch.linspace(-1, 1, max(n - 1, 1), dtype=torch.float64)[: n - 1]
    newest = torch.zeros_like(table.past)
    rows, columns = torch.tril_indices(n, n, -1)
    newest[(columns == 0) & (rows < n - 1)] = 0.1
    first = torch.zeros_like(table.gain)
    first[0] = 0.02
    moves: list[tuple[Tensor, Tensor]] = [
        (table.log_start, torch.tensor(0.5, dtype=torch.float64)),
        (table.log_ratios, torch.full_like(trend, 0.2)),
        (table.log_ratios, 0.3 * trend),
        (table.noise, torch.full_like(trend, 0.2)),
        (table.noise, 0.2 * trend),
        (table.past, newest),
        (table.gain, first),
        (table.told, torch.full_like(table.gain, 0.05)),
    ]
    learned = [p for p in table.parameters() if p.requires_grad]
    vectors = [
        torch.cat([(move if p is target else torch.zeros_like(p)).flatten() for p in learned])
        for target, move in moves
        if target.requires_grad and move.any()
    ]
    return torch.stack(vectors) if vectors else torch.empty(0, 0)


def _vector(table: LearnedTable) -> Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in table.parameters() if p.requires_grad])


@torch.no_grad()
def _move(table: LearnedTable, vector: Tensor) -> None:
    for p in table.parameters():
        if p.requires_grad:
            part, vector = vector[: p.numel()], vector[p.numel() :]
            p.copy_(part.view_as(p))
    table.project_()
