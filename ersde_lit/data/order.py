"""Order of the training images: a function of (seed, epoch), independent of the number of devices."""

import os
import random
from collections.abc import Callable, Iterator, Sized

import torch
from torch.utils.data import DistributedSampler


def run_seed() -> int:
    """The seed of this run, that of `seed_everything`; 0 if it was never called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


class SeededOrder(DistributedSampler[int]):
    """One rank's share of the shuffled images, epoch by epoch.

    A step takes the next `batch_size` images of the epoch's order, and rank r of R those at places r, r + R, r + 2R, ..
    among them, so that all ranks together take the same images whatever R is. What does not fill a last step is left
    out. Lightning replaces no sampler of this kind, and tells it the epoch.

    Args:
        dataset: what is ordered; only its length counts.
        batch_size: images a step over all ranks, a multiple of `ranks`.
        rank, ranks: which share of how many.
        seed: of the run.
        variants: how many there are of each image; index k + v len(dataset) is variant v of image k, drawn uniformly.
        done: number of images of this epoch that this rank has seen before (a resumed run), asked as iteration starts.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        variants: int = 1,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(dataset, ranks, rank, seed=seed)  # type: ignore[arg-type]
        self.images = len(dataset) // batch_size * batch_size
        self.variants, self.done = variants, done

    def __len__(self) -> int:
        return self.images // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        # a hash, since seed + epoch would give a run the order that another one has an epoch later
        generator = torch.Generator().manual_seed(random.Random(f"order {self.seed} {self.epoch}").getrandbits(48))
        count = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(count, generator=generator)
        order += count * torch.randint(self.variants, (count,), generator=generator)
        share = order[self.rank : self.images : self.num_replicas]
        return iter(share[self.done() :].tolist())
