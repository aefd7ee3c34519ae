"""Seeded noise, a function of (seed, step, element): the same images whatever the batch, rank or device count.

Counter-based: a 64-bit hash of the stream (seed and step) and of the element gives the bits of two uniforms;
Box-Muller makes two normals of them. One batched draw for all images, nothing to carry from step to step, the same on
CPU and GPU to rounding, and capturable by a CUDA graph.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.names import MAX_SEED, MAX_STEPS

_MAX_STEP = MAX_STEPS - 1
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio, made odd: spreads the element numbers
_LEA = 0xDABA0B6EB09322E3 - 2**64


class SeededNoise:
    """Standard normal noise [B, *shape] in which image k depends on ``seeds[k]`` alone.

    Any seed's `initial` and all its `step` streams are distinct, and distinct from those of every other seed.

    Args:
        seeds: B integers from 0 to 2^48 - 1.
        shape: of one image, e.g. (C, H, W).
        device: where the noise is made.
        dtype: floating; below float32 it is made in float32 and rounded. float64 uses the same bits.

    Raises:
        TypeError: a seed is not an integer, or dtype not floating.
        ValueError: a seed is out of range.
    """

    def __init__(
        self,
        seeds: Sequence[int] | Tensor,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        values = seeds.tolist() if isinstance(seeds, Tensor) else seeds if isinstance(seeds, range) else list(seeds)
        for seed in (*values[:1], *values[-1:]) if isinstance(values, range) else values:
            if isinstance(seed, bool) or not hasattr(seed, "__index__"):
                raise TypeError(f"a seed must be an integer, not {seed!r}")
            if not 0 <= seed <= MAX_SEED:
                raise UserError(f"a seed must lie between 0 and 2**48 - 1, not be {seed}")
        if not dtype.is_floating_point:
            raise TypeError(f"noise is of a floating dtype, not {dtype}")
        self.shape = torch.Size(shape)
        self.dtype = dtype
        if isinstance(values, range):  # counted on the device: a copy from here would wait for it
            numbers = torch.arange(len(values), device=device) * values.step + values.start
        else:
            numbers = torch.tensor(values, dtype=torch.int64, device=device)
        self._seeds = numbers.unsqueeze(1)
        pairs = (self.shape.numel() + 1) // 2
        self._elements = _mix(torch.arange(1, pairs + 1, device=device) * _GOLDEN)

    def initial(self) -> Tensor:
        """The noise a run starts from, before its scaling by ``lams[0]``."""
        return self._normal(0)

    def step(self, i: int) -> Tensor:
        """The noise of step i, from 0."""
        if not 0 <= i <= _MAX_STEP:
            raise UserError(f"a step is a number from 0 to {_MAX_STEP}, not {i}")
        return self._normal(i + 1)

    def _normal(self, stream: int) -> Tensor:
        # One key a (stream, seed), all different since packing and mixing are bijective.
        keys = _mix(self._seeds + (stream << 48))
        low, high = _halves(_mix(keys ^ self._elements))
        dtype = torch.promote_types(self.dtype, torch.float32)
        high &= 0x7FFFFFFF
        radius = high.to(dtype).add_(0.5).mul_(2**-31).log_().mul_(-2).sqrt_()  # of a uniform that is never 0
        angle = low.to(dtype).mul_(math.pi * 2**-31)
        normal = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)
        return normal[:, : self.shape.numel()].reshape(len(keys), *self.shape).to(self.dtype)


def _mix(x: Tensor) -> Tensor:
    """Lea's 64-bit mixer (Steele & Vigna, LXM, OOPSLA 2021): a bijection of int64, in place."""
    low, high = _halves(x)
    low ^= high  # x ^= x >>> 32
    x *= _LEA
    low ^= high
    x *= _LEA
    low ^= high
    return x


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    """Views of the low and the high 32 bits of int64 (little-endian, as every machine torch runs on)."""
    return x.unsqueeze(-1).view(torch.int32).unbind(-1)
