"""Noise levels for a denoiser by dynamic programming over one fine run of it, without gradients.

As GITS (Chen et al. 2024, https://arxiv.org/abs/2405.11326), with three changes: the leaps are those of rows of
order 2, so that what a leap misses depends on the level before it too; an error counts as what is left of it at
lam = 0, along each principal direction of the samples as it would on Gaussian data; and the first level is chosen with
the others, by what a start from pure noise misses there.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import DPMSolverPP, SeededNoise, grids, sample
from ersde_lit.solvers.loop import Denoise
from ersde_lit.solvers.sampler import adapt_grid
from ersde_lit.tuning.problem import Problem
from ersde_lit.tuning.rows import leaps


def plan_levels(
    problem: Problem, nfes: Iterable[int], seeds: Sequence[int] = range(64), fine: int | None = None
) -> dict[int, Tensor]:
    """Levels (nfe + 1,) for each number of calls, the last 0, chosen among those of one fine run of the ODE.

    They make the sum of the leaps' squared errors least. Memory holds 2 fine states a seed, float32.

    Args:
        problem: its objective is not asked.
        nfes: numbers of calls, below `fine`.
        seeds: of the run; their number is that of the principal directions too.
        fine: calls of the run, which are all the calls there are; None: `fine_calls`.

    Raises:
        UserError: as many calls as the run has.
    """
    nfes, fine = [*nfes], fine_calls(problem.denoiser) if fine is None else fine
    if max(nfes) >= fine:
        raise UserError(f"levels for {max(nfes)} calls are chosen from a finer run, of more than {fine} calls")
    lams = adapt_grid(grids.edm(fine, rho=12.0), problem.denoiser)
    costs = _Costs(lams, _run(problem, lams, seeds))
    return {n: lams[[*costs.cheapest(n), fine]] for n in nfes}


def fine_calls(denoiser: Denoise) -> int:
    """Calls of the run that levels are planned by: 64, or as many levels as the denoiser has."""
    levels = getattr(denoiser, "levels", None)
    return 64 if levels is None else min(64, len(levels))


@torch.no_grad()
def _run(problem: Problem, lams: Tensor, seeds: Sequence[int], batch: int = 16) -> Tensor:
    """States at all levels, 0 included, x0 at all others, and the noise: (2 fine + 2, seeds, D)."""
    tableau = DPMSolverPP(solver_type="heun").tableau(lams)
    parts = []
    for first in range(0, len(seeds), batch):
        part = seeds[first : first + batch]
        z = SeededNoise(part, problem.shape, problem.device).initial()
        labels = None if problem.labels is None else problem.labels(part).to(problem.device)
        states, x0s = list[Tensor](), list[Tensor]()

        def keep(i: int, lam: Tensor, y: Tensor, x0: Tensor, states=states, x0s=x0s) -> None:  # type: ignore[no-untyped-def]
            states.append(y.float().flatten(1).cpu())
            x0s.append(x0.float().flatten(1).cpu())

        end = sample(problem.denoiser, tableau, float(lams[0]) * z, labels=labels, callback=keep)
        parts.append(torch.stack([*states, end.float().flatten(1).cpu(), *x0s, z.float().flatten(1).cpu()]))
    return torch.cat(parts, dim=1)


class _Costs:
    """Squared errors of leaps: of the start, of the first leap, of those with a level before them, of the last."""

    def __init__(self, lams: Tensor, run: Tensor) -> None:
        fine = len(lams) - 1
        products, levels = _products(run, lams), lams[:-1]
        x0, noise = fine + 1, 2 * fine + 1  # where in the run x0 of the levels, and the noise, begin

        def squared(at: Tensor, vectors: list[Tensor], weights: list[Tensor]) -> Tensor:
            index, w = torch.stack(torch.broadcast_tensors(*vectors)), torch.stack(torch.broadcast_tensors(*weights))
            pairs = products[at, index.unsqueeze(0), index.unsqueeze(1)]
            return (pairs * w.unsqueeze(0) * w.unsqueeze(1)).sum((0, 1)).clamp(min=0)

        def of_leaps(path: Tensor) -> Tensor:
            """Costs of leaps from ``path[-2]`` to ``path[-1]``, after a level before that if there are three."""
            *before, j, k = path
            known = [j, *before]
            c = leaps(levels[torch.stack(known, dim=1)], levels[k], torch.zeros_like(levels[k]))
            weights = [levels[k] / levels[j], *c.unbind(1), -torch.ones_like(levels[k])]
            cost = torch.full([fine] * len(path), torch.inf, dtype=levels.dtype)
            cost[tuple(path)] = squared(k, [j, *(x0 + m for m in known), k], weights)
            return cost

        every, one = torch.arange(fine), torch.ones_like(levels)
        self.start = squared(every, [torch.tensor(noise), every], [levels, -one])
        self.first = of_leaps(torch.combinations(every, 2).T)
        self.leap = of_leaps(torch.combinations(every, 3).T)
        self.last = squared(torch.tensor(fine), [x0 + every, torch.tensor(fine)], [one, -one])

    def cheapest(self, n: int) -> list[int]:
        """Indices of n levels, ascending, whose costs have the least sum."""
        if n == 1:
            return [int((self.start + self.last).argmin())]
        total = self.start.unsqueeze(1) + self.first  # of paths that end in levels i, j
        came_from = []
        for _ in range(n - 2):
            total, best = (total.unsqueeze(2) + self.leap).min(0)
            came_from.append(best)
        path = [*divmod(int((total + self.last).argmin()), len(self.last))]
        for best in reversed(came_from):
            path.insert(0, int(best[path[0], path[1]]))
        return path


def _products(run: Tensor, lams: Tensor) -> Tensor:
    """Mean products (levels, V, V) of the run's vectors, each direction weighted by what is left at 0 of an error."""
    samples = run[len(lams) - 1]
    _, singular, directions = torch.linalg.svd(samples - samples.mean(0), full_matrices=False)
    std = singular.double() / len(samples) ** 0.5
    # In float64: leaps of neighbouring levels are small differences of large states.
    along = (run @ directions.T).double()
    products = torch.einsum("vbr, wbr -> rvw", along, along)
    whole = sum(torch.einsum("vbd, wbd -> vw", part, part) for part in (p.double() for p in run.split(512, dim=2)))
    across = whole - products.sum(0)
    left = std**2 / (std**2 + lams.unsqueeze(1) ** 2)  # (levels, directions), of the square
    smallest = left[:, -2:-1]  # the last direction is the one that centring took
    weighted = torch.einsum("lr, rvw -> lvw", left, products) + smallest.unsqueeze(2) * across
    return weighted / len(samples)
