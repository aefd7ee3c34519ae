"""Tiles: an image of any size as overlapping pieces that a network takes, and the pieces blended to an image again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ersde_lit.errors import UserError
from ersde_lit.networks import Network


@dataclass(frozen=True)
class Tiles:
    """Splits images along each axis into the fewest tiles, evenly spaced; what fits into one is padded at its end.

    Args:
        height, width: of a tile.
        overlap: of neighbouring tiles, at least; over it one fades linearly into the next.
        multiple: what the sides of a tile, and of smaller images once they are padded, are multiples of.

    Raises:
        UserError: tiles that are no multiple, or do not reach beyond their overlap.
    """

    height: int
    width: int
    overlap: int
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.height % self.multiple or self.width % self.multiple:
            raise UserError(
                f"--tile {self.height}: the network takes sides that are multiples of {self.multiple}; choose one"
            )
        if self.overlap >= min(self.height, self.width):
            raise UserError(f"--overlap {self.overlap}: it must be smaller than a tile, {self.height}x{self.width}")

    @classmethod
    def of(cls, network: Network, side: int | None = None, overlap: int | None = None) -> "Tiles":
        """Square tiles, or as large as the network's images; a quarter overlaps, if nothing else is said."""
        height, width = (side, side) if side else network.image_shape[1:]
        quarter = min(height, width) // 4
        return cls(height, width, quarter if overlap is None else overlap, network.multiple)

    def count(self, height: int, width: int) -> int:
        """The number of tiles of an image."""
        return len(self._starts(height, self.height)) * len(self._starts(width, self.width))

    def split(self, image: Tensor) -> list[Tensor]:
        """The tiles of an image [C, H, W], row by row: a copy of each, [C, height, width] or less."""
        height, width = image.shape[1:]
        down = -height % self.multiple if height < self.height else 0
        right = -width % self.multiple if width < self.width else 0
        mirrored = down < height and right < width
        image = F.pad(image[None], (0, right, 0, down), "reflect" if mirrored else "replicate")[0]
        return [
            image[:, top : top + self.height, left : left + self.width].clone()
            for top in self._starts(height, self.height)
            for left in self._starts(width, self.width)
        ]

    def join(self, tiles: Sequence[Tensor], height: int, width: int) -> Tensor:
        """The image [C, height, width] whose tiles, as of `split`, these are; those of an unchanged image give it."""
        lefts = self._starts(width, self.width)
        rows = [_chain(tiles[k : k + len(lefts)], lefts, 2) for k in range(0, len(tiles), len(lefts))]
        return _chain(rows, self._starts(height, self.height), 1)[:, :height, :width]

    def _starts(self, side: int, tile: int) -> list[int]:
        """Where tiles begin along an axis."""
        steps = max(math.ceil((side - tile) / (tile - self.overlap)), 0)
        return [k * (side - tile) // steps for k in range(steps + 1)] if steps else [0]


def _chain(pieces: Sequence[Tensor], starts: Sequence[int], axis: int) -> Tensor:
    """Pieces laid one after the other along an axis, each faded into over what it shares with the one before."""
    whole = pieces[0]
    for piece, start in zip(pieces[1:], starts[1:], strict=True):
        shared = whole.shape[axis] - start
        ramp = torch.arange(1, shared + 1, dtype=whole.dtype, device=whole.device) / (shared + 1)
        old, new = whole.narrow(axis, start, shared), piece.narrow(axis, 0, shared)
        faded = torch.lerp(old, new, ramp if axis == 2 else ramp[:, None])  # equal ones stay as they are, to the bit
        rest = piece.narrow(axis, shared, piece.shape[axis] - shared)
        whole = torch.cat([whole.narrow(axis, 0, start), faded, rest], axis)
    return whole
