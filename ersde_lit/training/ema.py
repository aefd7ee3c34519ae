"""Exponential moving average of weights, with its half-life in images and a ramp-up (Karras et al. 2022, app. F.2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.training.fsdp import whole_weights


@dataclass(frozen=True)
class EMA:
    """Settings of the exponential moving average.

    Args:
        half_life: images after which a weight's influence has halved.
        ramp_up: the half-life is at most this fraction of the images seen so far, so that early weights are forgotten;
            0 switches the ramp-up off.
    """

    half_life: float = 500_000
    ramp_up: float = 0.05

    def __post_init__(self) -> None:
        if not (self.half_life >= 0 and self.ramp_up >= 0):
            raise UserError(f"EMA half_life and ramp_up must not be negative, got {self.half_life} and {self.ramp_up}")

    def decay(self, images: int, images_seen: int) -> float:
        """Decay factor of a step over `images` images, after `images_seen` in all."""
        half_life = min(self.half_life, self.ramp_up * images_seen) if self.ramp_up else self.half_life
        return 0.5 ** (images / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, average: nn.Module, current: nn.Module, images: int, images_seen: int) -> None:
        """average <- decay * average + (1 - decay) * current, in place; buffers are copied."""
        averages = dict(average.named_parameters())
        for weights in whole_weights(current):
            follow(averages, weights, 1 - self.decay(images, images_seen))
        for kept, new in zip(average.buffers(), current.buffers(), strict=True):
            kept.copy_(new)


def follow(averages: Mapping[str, Tensor], weights: Mapping[str, Tensor], share: float) -> None:
    """average <- (1 - share) * average + share * weight in place, for these weights, in the averages' precision."""
    kept = [averages[name] for name in weights]
    new = [weight.to(average.dtype) for weight, average in zip(weights.values(), kept, strict=True)]
    torch._foreach_lerp_(kept, new, share)


def not_in_half(average: nn.Module, cast: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wraps `cast` so that tensors of `average` stay in float32 or better: half precision would lose small steps."""
    averages = {id(value) for value in chain(average.parameters(), average.buffers())}

    def careful(value: Tensor) -> Tensor:
        made = cast(value)
        is_half = made.is_floating_point() and made.itemsize < 4
        return value.to(made.device, torch.float32) if is_half and id(value) in averages else made

    return careful
