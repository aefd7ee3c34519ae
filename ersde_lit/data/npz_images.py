"""Source of an npz file of images, as guided-diffusion and `sample` write them."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ersde_lit.data.npz import array_names, load_array
from ersde_lit.data.pictures import MOST_CLASSES, centre_square, to_array
from ersde_lit.data.source import Resize, Source
from ersde_lit.errors import UserError
from ersde_lit.untrusted.archives import MIB

LARGEST = 16_384 * MIB  # of the images in memory
IMAGES, LABELS = "arr_0", "arr_1"


class NpzImages(Source):
    """arr_0 uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W], and classes arr_1 int64 [N] if it has them.

    All images are in memory. They are cropped to the square in their middle and made smaller, never larger.

    Args:
        path: the file.
        size, channels, resize, unlabelled: as for `open_source`.

    Raises:
        UserError: the arrays are damaged, of other types or shapes, or the images too small.
    """

    def __init__(self, path: Path, size: int, channels: Literal[1, 3], resize: Resize, unlabelled: bool) -> None:
        self.mode, self.resize = "RGB" if channels == 3 else "L", resize
        self.images = np.ascontiguousarray(load_array(path, IMAGES, LARGEST))
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise UserError(f"{path}: {IMAGES} is {self.images.dtype} {shape}, not uint8 [N, H, W, 3] or [N, H, W]")
        if min(shape[1:3]) < size:
            raise UserError(f"{path}: its images are {shape[2]}x{shape[1]}, too small for --size {size}")
        self.image_shape = (channels, size, size)
        self.labels = np.full(len(self.images), -1) if unlabelled else _labels(path, len(self.images))
        self.num_classes = int(self.labels.max(initial=-1)) + 1
        digest = hashlib.sha256(repr((self.image_shape, resize)).encode() + self.labels.tobytes())
        for start in range(0, len(self.images), 1000):
            digest.update(self.images[start : start + 1000].tobytes())
        self.identity = digest.hexdigest()

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._image(index) for index in indices])

    def _image(self, index: int) -> np.ndarray:
        pixels = self.images[index]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1:] == (1,) and pixels.ndim == 3 else pixels)
        return to_array(centre_square(image.convert(self.mode), self.image_shape[1], self.resize))


def _labels(path: Path, count: int) -> np.ndarray:
    """Classes, or -1 throughout: without the array, or where it says so itself."""
    if LABELS not in array_names(path):
        return np.full(count, -1)
    labels = load_array(path, LABELS)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: {LABELS} is {labels.dtype} {labels.shape}, not a class for each of {count} images")
    if (labels < 0).any() and not (labels == -1).all():
        raise UserError(f"{path}: {LABELS} has classes below 0: pass --unlabelled to leave them out")
    if count and labels.max() >= MOST_CLASSES:
        raise UserError(f"{path}: {LABELS} has the class {labels.max()}: classes are 0 to {MOST_CLASSES - 1}")
    return labels.astype(np.int64)
