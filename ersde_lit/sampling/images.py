"""Quantisation of float images to 8 bits."""

import torch
from torch import Tensor


class NotFinite(FloatingPointError, ValueError):
    """Error for samples that hold NaN."""


def quantise(x: Tensor) -> Tensor:
    """Float images, nominally in [-1, 1] and clipped to it, to uint8 of the same shape: floor(127.5 x + 128).

    The inverse of u / 127.5 - 1 for every u in 0..255; the rounding EDM (Karras et al. 2022) and its FIDs use.

    Raises:
        TypeError: x is not a floating-point tensor.
        NotFinite: x holds NaN; both a ValueError and, as what solvers raise, a FloatingPointError.
    """
    if not x.is_floating_point():
        raise TypeError(f"quantise takes float images in [-1, 1], not {x.dtype}")
    check_numbers(x)
    return (x.float() * 127.5 + 128).clip(0, 255).to(torch.uint8)


def check_numbers(x: Tensor) -> None:
    """Raises NotFinite where samples hold NaN."""
    if x.isnan().any():
        raise NotFinite("the samples hold NaN: is the checkpoint a diverged run, or half precision too coarse?")
