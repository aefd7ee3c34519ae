"""Magnitude-preserving layers of EDM2 (Karras et al. 2024, arXiv:2312.02696, whose equations are named).

Each keeps the expected magnitude (root mean square) of activations, whatever its learned weights are: inputs of
magnitude 1 give outputs of magnitude 1. Each computes in the dtype of its input over weights of float32 or better.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalise(x: Tensor, dim: int | None = None, eps: float = 1e-4) -> Tensor:
    """x over its root mean square along `dim`, over all dimensions but the first if None."""
    axes = list(range(1, x.ndim)) if dim is None else [dim]
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=wide)
    return x / (norm * math.sqrt(norm.numel() / x.numel()) + eps).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its magnitude for inputs from N(0, 1) (eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t) a + t b, of the magnitude of uncorrelated a and b (eq. 88)."""
    scale = math.hypot(1 - t, t)
    return torch.add((1 - t) / scale * a, b, alpha=t / scale)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels of a and b, which contribute (1 - t) to t to the result, however many they are (eq. 103)."""
    scale = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    return torch.cat([scale * (1 - t) / math.sqrt(a.shape[1]) * a, scale * t / math.sqrt(b.shape[1]) * b], dim=1)


class MPFourier(nn.Module):
    """sqrt(2) cos(2 pi (freqs c + phases)), freqs ~ N(0, 1), phases uniform: [B] -> [B, channels] (eq. 75).

    The factor 2 pi is in the buffers, as published.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, c: Tensor) -> Tensor:
        return math.sqrt(2) * (c[:, None] * self.freqs.to(c.dtype) + self.phases.to(c.dtype)).cos()


class MPConv(nn.Module):
    """Convolution, or linear layer where kernel_size is None, whose weights have magnitude 1 per output (eq. 47, 66).

    In training mode each forward pass first replaces the stored weights by the normalised ones ("forced weight
    normalization"), so that updates keep their relative size; gradients pass through the normalisation.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | None = None) -> None:
        super().__init__()
        window = () if kernel_size is None else (kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *window))

    @torch.no_grad()
    def normalise_weight(self) -> None:
        """Forced weight normalisation, in place."""
        self.weight.copy_(normalise(self.weight))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """x [B, in_channels, (H, W)] -> [B, out_channels, (H, W)], times `gain`."""
        if self.training:
            self.normalise_weight()
        weight = normalise(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)))
        weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)
