"""Latents: samples that are an autoencoder's latents rather than pixels, and their statistics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ersde_lit.errors import UserError


@dataclass(frozen=True)
class Latents:
    """Raw latents of an autoencoder, shifted and scaled to mean 0 and standard deviation `final_std` a channel.

    EDM2's (Karras et al. 2024) of Stable Diffusion's autoencoder, in images in [0, 1] and without its factor 0.18215:
    mean (5.81, 3.25, 0.12, -2.15), std (4.17, 4.62, 3.71, 3.28).

    Args:
        mean, std: of the raw latents, one a channel.
        final_std: of what the model is trained on and samples.

    Raises:
        ValueError: numbers of channels that differ, or standard deviations that are none.
    """

    mean: Sequence[float]
    std: Sequence[float]
    final_std: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # checkpoints hold lists
        object.__setattr__(self, "std", tuple(self.std))
        if len(self.mean) != len(self.std):
            raise UserError(f"latents have a mean and a std a channel, got {len(self.mean)} and {len(self.std)}")
        if not all(math.isfinite(m) for m in self.mean) or not all(
            0 < s < math.inf for s in (*self.std, self.final_std)
        ):
            raise UserError(f"the statistics of latents cannot be {self.mean}, {self.std} and {self.final_std}")

    def raw(self, x: Tensor) -> Tensor:
        """The autoencoder's latents of samples x, both [B, C, H, W]."""
        mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device) for values in (self.mean, self.std))
        return x * (std / self.final_std).view(-1, 1, 1) + mean.view(-1, 1, 1)
