"""EDM's non-leaking augmentation: geometric changes of training images, given to the network as conditions.

A network that is told what was done to an image can learn from the changed images without generating any: sampled
with conditions of zero, it makes images like the unchanged ones (Karras et al. 2022, appendix F.2 and table 6, after
Karras et al. 2020, arXiv:2006.06676).
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ersde_lit.errors import UserError

# Low-pass filter of the orthonormal wavelet sym6 (Daubechies 1992): halving undoes doubling.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip


@dataclass(frozen=True)
class Augment:
    """Mirrors, zooms, turns, stretches and shifts images as functions of uniform numbers.

    Left and right are swapped in half of the images; each of the other changes is made to an image with
    `probability`, in this order. The conditions are the published ones, so published networks understand them (n is
    standard normal, angles are anticlockwise):

    0, 1  1 where left and right, top and bottom are swapped (the latter in half of the images chosen for it)
    2     zoom by 2^(0.2 n): n
    3, 4  turn by an angle a, uniform on the circle: cos a - 1 and sin a
    5, 6  stretch by 2^(0.2 n) along an axis at the angle b, and shrink as much across: n cos b and n sin b; b is 0
          in half of the images and uniform in the others
    7, 8  shift right and down, each by n / 8 of the image's side: the two n

    Outside, an image continues as its mirror image. Images that are only mirrored stay exact.

    Args:
        probability: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2 at 64x64 as published; 0 leaves images as they are.
    """

    num_draws: ClassVar[int] = 13  # uniform numbers an image
    num_conditions: ClassVar[int] = 9  # what a network is told of an image: its augment_dim

    probability: float = 0.12

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"Augment: probability must be in [0, 1], got {self.probability}")

    def __call__(self, images: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Changed images and their conditions [B, 9]; nothing in it waits for the device.

        Args:
            images: float32 [B, C, H, W], any range and number of channels, at least 3 pixels a side.
            u: uniform numbers in [0, 1), float32 [B, 13].
        """
        p = self.probability
        flip_x, flip_y, zooms, zoom, turns, turn, stretches, stretch, tilts, tilt, shifts, right, down = u.unbind(1)
        mirrored_x, mirrored_y = flip_x < (0.5 if p else 0), flip_y < p / 2
        zoom = (zooms < p) * _normal(zoom)
        turn = (turns < p) * _angle(turn)
        stretch, tilt = (stretches < p) * _normal(stretch), (tilts < 0.5) * _angle(tilt)
        right, down = (shifts < p) * _normal(right), (shifts < p) * _normal(down)
        conditions = [
            mirrored_x, mirrored_y, zoom, turn.cos() - 1, turn.sin(), stretch * tilt.cos(), stretch * tilt.sin(),
            right, down,
        ]  # fmt: skip

        moved = torch.stack([zooms, turns, stretches, shifts]).amin(0) < p
        mirrored_rows, mirrored_columns, moved = (
            flags[:, None, None, None] for flags in (mirrored_x, mirrored_y, moved)
        )
        images = torch.where(mirrored_rows, images.flip(-1), images)
        images = torch.where(mirrored_columns, images.flip(-2), images)
        images = torch.where(moved, _warp(images, zoom, turn, stretch, tilt, right, down), images)
        return images, torch.stack([condition.to(images) for condition in conditions], dim=1)


def _warp(
    images: Tensor, zoom: Tensor, turn: Tensor, stretch: Tensor, tilt: Tensor, right: Tensor, down: Tensor
) -> Tensor:
    """Takes each pixel of images [B, C, H, W] from where it was, at twice their resolution to keep them sharp."""
    height, width = images.shape[-2:]
    x, y = _grid(width, images.device), _grid(height, images.device)[:, None]
    x, y = x - right[:, None, None] * (width / 8), y - down[:, None, None] * (height / 8)
    x, y = _rotate(x, y, tilt)
    factor = torch.exp2(0.2 * stretch)[:, None, None]
    x, y = _rotate(x / factor, y * factor, turn - tilt)
    factor = torch.exp2(0.2 * zoom)[:, None, None]
    grid = torch.stack([_position(x / factor, width), _position(y / factor, height)], dim=-1)

    dtype = torch.promote_types(images.dtype, torch.float32)
    (double_x, halve_x), (double_y, halve_y) = (_filters(side, images.device, dtype) for side in (width, height))
    with torch.autocast(images.device.type, enabled=False):
        doubled = double_y @ images.to(dtype) @ double_x.mT
        warped = halve_y @ F.grid_sample(doubled, grid.to(dtype), align_corners=True) @ halve_x.mT
        return warped.to(images.dtype)


@cache
def _filters(side: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Resolution of an axis as matrices: doubled [4 side - 3, side] and halved [side, 2 side + 10].

    Pixel k is sample 2k of the doubled axis, which is one period of the image mirrored for ever, and its first sample
    again. What is halved begins 5 samples before the first pixel and ends 6 after the last: the filter's reach.
    """
    taps = torch.tensor(SYM6, dtype=torch.float64)[None, None]
    period = F.pad(F.pad(torch.eye(side, dtype=taps.dtype)[:, None], (0, side - 2), "reflect"), (3, 3), "circular")
    double = F.conv_transpose1d(period, taps, stride=2, padding=11, output_padding=1)
    halve = F.conv1d(torch.eye(2 * side + 10, dtype=taps.dtype)[:, None], taps, stride=2)
    return double[:, 0].T.contiguous().to(device, dtype), halve[:, 0].T.contiguous().to(device, dtype)


def _grid(side: int, device: torch.device) -> Tensor:
    """Where the samples to be halved are: pixels from the centre."""
    return (torch.arange(2 * side + 10, device=device) - (side + 4)) / 2


def _position(x: Tensor, side: int) -> Tensor:
    """Pixels from the centre as grid_sample counts: -1 to 1 over one period of the doubled axis."""
    period = 2 * side - 2
    return torch.remainder(2 * x + (side - 1), 2 * period) / period - 1


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return x * cos - y * sin, x * sin + y * cos


def _normal(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))


def _angle(u: Tensor) -> Tensor:
    return (2 * u - 1) * math.pi
