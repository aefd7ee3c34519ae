"""Weights that are the same on every machine, so that a file of vectors needs to hold none."""

import math

import numpy as np
import torch
from torch import Tensor


def hashed(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Matrices of variance 1 / fan_in and vectors around 1 or 0, by the splitmix64 hash of position and order."""
    state = {}
    for i, (name, shape) in enumerate(shapes.items()):
        u = uniform(tuple(shape), i)
        norm = len(shape) == 1 and name.endswith("weight")
        state[name] = u * math.sqrt(3 / math.prod(shape[1:])) if len(shape) > 1 else 0.2 * u + norm
    return state


def uniform(shape: tuple[int, ...], stream: int) -> Tensor:
    """Uniform in (-1, 1), the same on every machine: the splitmix64 hash of position and stream."""
    with np.errstate(over="ignore"):
        z = (np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(stream << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32)).reshape(shape) / 2**23 - 1
