"""Problem: what a table is learned for, a denoiser, the shape of its samples and an objective."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ersde_lit.names import MAX_SEED
from ersde_lit.ranks import Ranks
from ersde_lit.solvers import SeededNoise, Tableau, sample
from ersde_lit.solvers.loop import Denoise
from ersde_lit.solvers.sampler import Noise

# Learning, stopping and reporting share no seed: reports use those below, as everybody does.
LEARNING = range(2**46, 2**47)
STOPPING = range(2**47, MAX_SEED + 1)


class Objective(Protocol):
    """Loss of a batch of samples: [] from samples [B, ...], their noise and labels.

    Its expectation over batches is what is minimised, so values of ranks and blocks are averaged.
    """

    def __call__(self, x: Tensor, noise: Noise, labels: Tensor | None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Problem:
    """A denoiser, guided or not, and what its samples are judged by.

    Attributes:
        denoiser: ``denoiser(y, lam) -> x0``, or with ``labels=`` where there are labels. Its lam_min, lam_max and
            levels, if it has them, bound what is learned. Only gradients to y and lam are asked for.
        shape: of one sample.
        objective: see `Objective`.
        labels: the labels of seeds, a function of the seeds alone; None: the denoiser is called without.
        device: where noise is made, and denoiser and objective are.
        noise: the noise of seeds; None: `SeededNoise`.
    """

    denoiser: Denoise
    shape: Sequence[int]
    objective: Objective
    labels: Callable[[Sequence[int]], Tensor] | None = None
    device: torch.device | str = "cpu"
    noise: Callable[[Sequence[int]], Noise] | None = None

    def draw(self, seeds: Sequence[int]) -> tuple[Noise, Tensor | None]:
        """Noise and labels of these seeds."""
        labels = None if self.labels is None else self.labels(seeds).to(self.device)
        noise = SeededNoise(seeds, self.shape, self.device) if self.noise is None else self.noise(seeds)
        return noise, labels

    def to(self, device: torch.device | str) -> "Problem":
        """The same on another device; modules move there, as ``nn.Module.to`` has it."""
        for part in (self.denoiser, self.objective):
            if isinstance(part, nn.Module):
                part.to(device)
        return replace(self, device=device)

    @torch.no_grad()
    def scores(self, tableau: Tableau, seeds: Sequence[int], batch: int = 200, block: int = 500) -> Tensor:
        """The objective of each block of seeds (see `blocks`), float64 on the CPU: the same blocks for each table.

        Args:
            batch: samples made at a time.
        """
        values = []
        for part in blocks(seeds, block):
            x = torch.cat([self._samples(tableau, part[k : k + batch]) for k in range(0, len(part), batch)])
            values.append(self.objective(x, *self.draw(part)))
        return torch.stack(values).double().cpu()

    def _samples(self, tableau: Tableau, seeds: Sequence[int]) -> Tensor:
        noise, labels = self.draw(seeds)
        start = float(tableau.lams[0]) * noise.initial()
        return sample(self.denoiser, tableau, start, noise=noise, labels=labels)


def judge(problem: Problem, tableau: Tableau, validation: int, batch: int, ranks: Ranks, block: int = 500) -> Tensor:
    """The objective on that many stopping seeds, block by block, (blocks,); infinite where samples are not finite.

    Args:
        ranks: each does its share of the blocks, and gets all.
    """
    parts = blocks(STOPPING[:validation], block)
    mine = list[float]()
    for part in parts[ranks.rank :: ranks.count]:
        try:
            mine.append(float(problem.scores(tableau, part, batch, len(part))[0]))
        except FloatingPointError:
            mine.append(math.inf)
    scores = torch.empty(len(parts), dtype=torch.float64)
    for rank, found in enumerate(ranks.gather(mine)):
        scores[rank :: ranks.count] = torch.tensor(found, dtype=torch.float64)
    return scores


def blocks(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    """`seeds` in blocks of one size, to a seed, of at least `size` if there are as many."""
    count, n = max(1, len(seeds) // size), len(seeds)
    return [seeds[n * k // count : n * (k + 1) // count] for k in range(count)]
