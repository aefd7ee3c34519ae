"""Layers of DDPM++, NCSN++ and ADM, with the state-dict names of EDM (Karras et al. 2022).

Each computes in the dtype of its input, whatever its parameters are stored in: half-precision images run in
half-precision blocks over float32 weights, as published, while a float32 embedding stays float32.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.errors import UserError

Direction = Literal["up", "down"]


class Linear(nn.Linear):
    """[..., in_features] -> [..., out_features]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class GroupNorm(nn.GroupNorm):
    """Over groups of at least four channels, 32 groups at most.

    Raises:
        ValueError: the channels do not fall into equal groups.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        groups = min(32, channels // 4)
        if not groups or channels % groups:
            raise UserError(
                f"{channels} channels do not fall into equal normalisation groups: "
                "choose model_channels a multiple of 32, or of 4 in a narrow network"
            )
        super().__init__(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Resample(nn.Module):
    """Halves or doubles height and width, each channel by itself: [B, C, H, W] -> [B, C, H/2, W/2] or [B, C, 2H, 2W].

    Args:
        direction: "up" or "down".
        taps: the filter along one axis; [1, 1] averages pairs of pixels on the way down, repeats them on the way up.
    """

    resample_filter: Tensor

    def __init__(self, direction: Direction, taps: Sequence[int]) -> None:
        super().__init__()
        self.direction = direction
        self.register_buffer("resample_filter", separable_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return resample(x, self.resample_filter, self.direction)


class Conv2d(nn.Conv2d):
    """Convolution that keeps the size, after resampling where a direction is given."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        direction: Direction | None = None,
        taps: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.direction = direction
        if direction is not None:
            self.register_buffer("resample_filter", separable_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        if self.direction is not None:
            x = resample(x, self.resample_filter, self.direction)
        return self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class ConvThenDownsample(Conv2d):
    """Convolution at full resolution, halved afterwards; the padding for both comes first, as NCSN++ has it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, taps: Sequence[int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.register_buffer("resample_filter", separable_filter(taps))
        self.padding = (kernel_size // 2 + len(taps) // 2 - 1,) * 2

    def forward(self, x: Tensor) -> Tensor:
        return resample(super().forward(x), self.resample_filter, "down", padding=0)


class PositionalAngles(nn.Module):
    """Angles c_noise * w, w falling geometrically from 1 to 1e-4 (Vaswani et al. 2017): [B] -> [B, channels / 2].

    Args:
        endpoint: whether the last frequency is 1e-4 itself (DDPM++) or the first left out (ADM).
    """

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        self.count, self.endpoint = channels // 2, endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        # not a buffer, which a network built on the meta device would never fill
        k = torch.arange(self.count, dtype=torch.float32, device=c_noise.device)
        return c_noise[:, None] * (1e-4 ** (k / (self.count - self.endpoint))).to(c_noise.dtype)


class FourierAngles(nn.Module):
    """Angles 2 pi c_noise * w, w drawn once from N(0, 16^2) (Tancik et al. 2020): [B] -> [B, channels / 2]."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        return c_noise[:, None] * (2 * math.pi * self.freqs).to(c_noise.dtype)


def resolutions(finest: int, levels: int) -> list[int]:
    """Resolution of each level, each half of the one before; raises ValueError where it cannot be halved so often."""
    if not levels or finest % 2 ** (levels - 1):
        raise UserError(
            f"each level of channel_mult but the first halves the resolution: img_resolution {finest} "
            f"does not allow {levels} levels"
        )
    return [finest >> level for level in range(levels)]


def class_vectors(labels: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    """One-hot [B, num_classes] in the dtype of `like` [B]; all zero for label -1, or without labels."""
    if labels is None:
        return like.new_zeros(len(like), num_classes)
    return F.one_hot(labels + 1, num_classes + 1)[:, 1:].to(like.dtype)


def separable_filter(taps: Sequence[int]) -> Tensor:
    """Outer product of the taps with themselves, of sum 1: [1, 1, k, k]; raises ValueError where k is not even."""
    if not taps or len(taps) % 2:
        raise UserError(f"resample_filter needs an even number of taps, such as [1, 1] or [1, 3, 3, 1]: {list(taps)}")
    along = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    return torch.outer(along, along)[None, None]


def resample(x: Tensor, kernel: Tensor, direction: Direction, padding: int | None = None) -> Tensor:
    """Depthwise filter with stride 2; `padding` keeps size / 2 and size * 2 exact if None."""
    channels = x.shape[1]
    kernel = kernel.to(x.dtype).expand(channels, -1, -1, -1)
    padding = kernel.shape[-1] // 2 - 1 if padding is None else padding
    if direction == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
