"""One picture of many images."""

from __future__ import annotations

import os
from pathlib import Path

import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor


def image_grid(images: Tensor, columns: int, min_size: int = 32) -> Tensor:
    """Images uint8 [rows * columns, C, H, W] side by side as uint8 [C, H', W'], row by row, a dark line between them.

    Small images are enlarged by a whole factor until H reaches `min_size`, so that 8x8 digits can be looked at.
    """
    factor = max(1, -(-min_size // images.shape[-2]))
    images = repeat(images, "n c h w -> n c (h fh) (w fw)", fh=factor, fw=factor)
    return rearrange(F.pad(images, (1, 1, 1, 1), value=32), "(r k) c h w -> c (r h) (k w)", k=columns)


def save_png(picture: Tensor, path: Path) -> None:
    """Writes uint8 [C, H, W], C = 1 or 3, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    grey = picture.shape[0] == 1
    pixels = rearrange(picture, "1 h w -> h w") if grey else rearrange(picture, "c h w -> h w c")
    Image.fromarray(pixels.cpu().contiguous().numpy()).save(partial, format="png")
    partial.replace(path)
