"""Random draws of training, as functions of the run's seed and an image's number.

Image n is the n-th that the run trains on, counted over all epochs and devices. So what an image is trained with
depends neither on how many devices share a step, nor on accumulation, nor on where a run was stopped and resumed.
"""

import random

import torch
from torch import Tensor

from ersde_lit.solvers import SeededNoise


def image_seeds(run_seed: int, numbers: range) -> range:
    """Seeds for `SeededNoise`, distinct, in 0 to 2^48 - 1, of the images of these numbers."""
    first = random.Random(f"training {run_seed}").getrandbits(47)
    return range(first + numbers.start, first + numbers.stop, numbers.step)


def uniform(seeds: range, count: int, device: torch.device) -> Tensor:
    """Draws uniform numbers in [0, 1), float32 [B, count]: row k from seeds[k], independent of `initial`."""
    normal = SeededNoise(seeds, (count,), device).step(0)
    return torch.special.ndtr(normal).clamp(max=1 - 2**-24)
