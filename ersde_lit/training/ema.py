"""Exponential moving average of weights, with its half-life in images and a ramp-up (Karras et al. 2022, app. F.2)."""

from dataclasses import dataclass

import torch
from torch import nn

from ersde_lit.training.fsdp import whole


@dataclass(frozen=True)
class EMA:
    """How fast the averaged weights follow the raw ones.

    Args:
        half_life: images after which a weight's influence has halved.
        ramp_up: the half-life is at most this fraction of the images seen so far, so that early weights are forgotten;
            0 switches the ramp-up off.
    """

    half_life: float = 500_000
    ramp_up: float = 0.05

    def __post_init__(self) -> None:
        if self.half_life < 0 or self.ramp_up < 0:
            raise ValueError(f"EMA half_life and ramp_up must not be negative, got {self.half_life} and {self.ramp_up}")

    def decay(self, images: int, images_seen: int) -> float:
        """The factor the average keeps in a step over `images` images, after `images_seen` in all."""
        half_life = min(self.half_life, self.ramp_up * images_seen) if self.ramp_up else self.half_life
        return 0.5 ** (images / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, average: nn.Module, current: nn.Module, images: int, images_seen: int) -> None:
        """average <- decay * average + (1 - decay) * current, in place; buffers are copied."""
        weight = 1 - self.decay(images, images_seen)
        torch._foreach_lerp_(list(average.parameters()), [whole(new) for new in current.parameters()], weight)
        for kept, new in zip(average.buffers(), current.buffers(), strict=True):
            kept.copy_(new)
