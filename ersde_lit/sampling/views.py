"""Preview of a sampling run, and the check of its pictures' paths."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.files import check_out, disk_errors
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise

MARK = {"made by": "ersde_lit sample"}


class Preview:
    """Callback of samplers that draws the x0 predictions of the current block, then its images.

    Args:
        path: a .png file.
        images: shown of a block, at most.
        seconds: between two pictures, at least; drawing one waits for the device.
        to_bytes: as for `Job`.
    """

    def __init__(
        self,
        path: str | Path,
        images: int = 64,
        seconds: float = 2.0,
        to_bytes: Callable[[Tensor], Tensor] = quantise,
    ) -> None:
        self.path, self.images, self.seconds, self.to_bytes = Path(path), images, seconds, to_bytes
        self._due = 0.0

    def __call__(self, i: int, lam: Tensor, y: Tensor, x0: Tensor) -> None:
        if time.monotonic() >= self._due:
            self.show(self.to_bytes(x0[: self.images]))

    def show(self, images: Tensor) -> None:
        """Draws images, uint8 [B, C, H, W]."""
        with disk_errors(self.path, "preview"):
            save_png(image_grid(images[: self.images]), self.path, MARK)
        self._due = time.monotonic() + self.seconds


def check_view(option: str, path: str | Path, image_shape: Sequence[int]) -> None:
    """Raises UserError where a view cannot be written to `path`, or would replace another picture."""
    check_out(path, option)
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UserError(f"--{option} {path}: it is a picture; give it a name that ends in .png")
    if image_shape[0] not in (1, 3):
        raise UserError(f"--{option} {path}: a PNG holds 1 or 3 channels, not {image_shape[0]}")
    if target.exists():
        try:
            with Image.open(target, formats=["png"]) as image:
                ours = MARK.items() <= image.info.items()
        except (OSError, ValueError):
            ours = False
        if not ours:
            raise UserError(f"--{option} {path} exists and is another picture, so it stays; choose another name")
