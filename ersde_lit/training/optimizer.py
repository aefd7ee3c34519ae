"""Settings of AdamW and of its learning rate: warm-up, inverse square root decay, and a decay at the end."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ersde_lit.errors import UserError


@dataclass(frozen=True)
class AdamWConfig:
    """Settings of fused AdamW as plain numbers, which checkpoints keep.

    EDM's Adam (Karras et al. 2022) is lr 1e-3 (1e-4 for ImageNet-64), betas 0.9 and 0.999, warmup 10,000,000.

    Args:
        lr: peak learning rate.
        betas: decay of Adam's two moments.
        weight_decay: decoupled weight decay.
        warmup: images over which the rate rises linearly from 0 to `lr`.
        decay: fraction of the training, at its end, over which the rate falls to 0; 1: from the beginning.
        decay_shape: "linear", or "cosine": (1 + cos(pi p)) / 2 at the share p of that fraction.
        constant: images after which the rate falls as sqrt(constant / images), as EDM2's does (Karras et al.
            2024, arXiv:2312.02696; its t_ref counts batches); 0: it does not.
        eps: of Adam's denominator. Our losses are means over an image, EDM's and EDM2's sums, with gradients larger by
            the number of values and eps 1e-8: where gradients are small, divide eps by that number.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 0
    decay: float = 0.0
    decay_shape: Literal["linear", "cosine"] = "linear"
    constant: int = 0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf and min(self.warmup, self.constant) >= 0 and 0 <= self.decay <= 1):
            raise UserError(f"AdamW needs lr > 0, warmup and constant >= 0 and decay in [0, 1], got {self}")
        if not (all(0 <= beta < 1 for beta in self.betas) and self.weight_decay >= 0 and self.eps >= 0):
            raise UserError(f"AdamW needs betas in [0, 1), weight_decay and eps >= 0, got {self}")
        if self.decay_shape not in ("linear", "cosine"):
            raise UserError(f"decay_shape is linear or cosine, not {self.decay_shape!r}")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        # Plain floats whatever was given (a list by YAML, numpy's numbers): optimiser states go into checkpoints.
        first, second = map(float, self.betas)
        optimizer = torch.optim.AdamW(
            parameters, float(self.lr), (first, second), float(self.eps), float(self.weight_decay), fused=True
        )
        # Under fp16, what looks at gradients before a step (clipping, NaN) must see them unscaled: not by the kernel.
        optimizer._step_supports_amp_scaling = False
        return optimizer

    def factor(self, images_seen: int, progress: float) -> float:
        """Factor of `lr` after `images_seen` images, at `progress` in [0, 1] of the training."""
        rise = min(images_seen / self.warmup, 1.0) if self.warmup else 1.0
        fall = min((1 - progress) / self.decay, 1.0) if self.decay else 1.0
        if self.decay_shape == "cosine":
            fall = (1 - math.cos(math.pi * max(fall, 0.0))) / 2
        root = math.sqrt(self.constant / max(images_seen, self.constant)) if self.constant else 1.0
        return max(rise * root * fall, 0.0)


AdamW = AdamWConfig  # the name before
