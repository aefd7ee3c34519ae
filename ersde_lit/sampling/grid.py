"""Grids of images as one picture, and PNG files."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ersde_lit.files import replacing


def image_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Images uint8 [N, C, H, W] side by side as uint8 [C, H', W'], row by row, a dark line between them.

    With no `columns` given the grid is as near to a square as may be; a last row that is not full ends in black. Small
    images are enlarged by a whole factor until H reaches 32, so that 8x8 digits can be looked at.
    """
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    factor = max(1, -(-32 // images.shape[-2]))
    images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % columns))
    images = repeat(images, "n c h w -> n c (h fh) (w fw)", fh=factor, fw=factor)
    return rearrange(F.pad(images, (1, 1, 1, 1), value=32), "(r k) c h w -> c (r h) (k w)", k=columns)


def save_png(picture: Tensor, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Writes uint8 [C, H, W], C = 1 or 3, atomically; makes the folder. `text` is kept in the file by key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = picture.shape[0] == 1
    pixels = rearrange(picture, "1 h w -> h w") if grey else rearrange(picture, "c h w -> h w c")
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    with replacing(path) as temporary:
        Image.fromarray(pixels.cpu().contiguous().numpy()).save(temporary, format="png", pnginfo=info)
