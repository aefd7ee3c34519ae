"""Images on disk as a stream of uint8 batches, from a folder, zip, npz or converted data set."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ersde_lit.data.array import is_converted, read_array, splits
from ersde_lit.data.decode import Exif
from ersde_lit.data.files import Files, notes_on, open_files
from ersde_lit.data.npz import open_array
from ersde_lit.data.pictures import to_array
from ersde_lit.errors import UserError

FORMS = "a folder or zip of images, an npz with arr_0, or a folder that `python -m ersde_lit data` made"


class ImageFiles(ABC):
    """Images of one shape, streamed: a batch is in memory at a time.

    Attributes:
        path: where they are.
        image_shape: (C, H, W).
        count: how many there are.
        notes: what is to be said of how they are read, and of what is left out; a line each.
    """

    path: Path
    image_shape: tuple[int, int, int]
    count: int
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """Whose images they are, in words."""
        return f"images of {self.path}" + "".join(f" ({note})" for note in self.notes)

    def __len__(self) -> int:
        return self.count

    def batches(self, batch_size: int = 100, rank: int = 0, ranks: int = 1) -> Iterator[Tensor]:
        """Yields uint8 [n, C, H, W], n <= batch_size, in order: every `ranks`-th batch, from number `rank` on."""
        starts = range(0, self.count, batch_size)[rank::ranks]
        for images in self._read([range(start, min(start + batch_size, self.count)) for start in starts]):
            yield torch.from_numpy(images)

    @abstractmethod
    def _read(self, parts: list[range]) -> Iterator[np.ndarray]:
        """Images of these consecutive ranges, which ascend: uint8 [n, C, H, W]."""


def image_files(path: str | Path, exif: Exif = "apply") -> ImageFiles:
    """The images at `path`, checked as far as can be without reading them all.

    Args:
        path: a folder (searched through) or zip of images, as EDM's; an npz with uint8 `arr_0` [n, H, W, C], as ADM's;
            or a folder that `python -m ersde_lit data` made, of which the training images count.
        exif: whether image files are turned as their EXIF orientation says ("apply"), or taken as they are stored
            ("ignore"), as torchvision and EDM's tool do.

    Raises:
        ValueError: nothing is there, it holds no image, or is damaged; names the file.
    """
    path = Path(path).expanduser()
    if is_converted(path):
        return _Array(path)
    if files := open_files(path):
        return _Pictures(files, exif)
    if path.suffix.lower() == ".npz":
        return _Npz(path)
    raise UserError(f"{path} is none of the forms that are read: {FORMS}")


class _Pictures(ImageFiles):
    """Image files in the order of their names, all of the size and colour of the first."""

    def __init__(self, files: Files, exif: Exif) -> None:
        self.files, self.path, self.names, self.exif = files, files.path, files.images, exif
        self.count, self.notes = len(self.names), (*files.notes, *notes_on(exif))
        first = files.decode(self.names[0], None, exif)
        self.image_shape = (1 if first.mode == "L" else 3, first.height, first.width)

    def _read(self, parts: list[range]) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
            for part in parts:
                yield np.stack([*pool.map(self._image, part)])

    def _image(self, index: int) -> np.ndarray:
        name, is_grey = self.names[index], self.image_shape[0] == 1
        image = self.files.decode(name, None if is_grey else 3, self.exif)
        if is_grey and image.mode != "L":
            raise UserError(f"{self.files.where(name)} cannot be used: it is in colour, and {self.names[0]} is grey")
        array = to_array(image)
        if array.shape != self.image_shape:
            (_, h, w), (_, height, width) = array.shape, self.image_shape
            raise UserError(f"{self.files.where(name)} is {w}x{h}, and {self.names[0]} is {width}x{height}")
        return array


class _Npz(ImageFiles):
    """`arr_0`, read as a stream: compressed or not, a batch of it is in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_array(path, "arr_0") as (file, shape, dtype, fortran):
            nan = ", with NaN in it" if dtype.kind == "f" and _has_nan(file, dtype) else ""
        if dtype != np.uint8:
            raise UserError(f"{path}: arr_0 is {dtype}{nan}, not uint8: images are whole numbers 0 .. 255")
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape[1:]:
            raise UserError(f"{path}: arr_0 is {list(shape)}, not [n, H, W, C] with C = 1 or 3")
        if fortran:
            raise UserError(f"{path}: arr_0 is in Fortran order: save np.ascontiguousarray of it")
        if not shape[0]:
            raise UserError(f"{path} holds no image")
        self.count, (height, width, channels) = shape[0], shape[1:]
        self.image_shape = (channels, height, width)

    def _read(self, parts: list[range]) -> Iterator[np.ndarray]:
        channels, height, width = self.image_shape
        size, at = channels * height * width, 0
        with open_array(self.path, "arr_0") as (file, *_):
            for part in parts:
                file.seek((part.start - at) * size, io.SEEK_CUR)
                data, at = file.read(len(part) * size), part.stop
                array = np.frombuffer(bytearray(data), np.uint8).reshape(-1, height, width, channels)
                yield np.ascontiguousarray(rearrange(array, "n h w c -> n c h w"))


def _has_nan(file: IO[bytes], dtype: np.dtype[Any]) -> bool:
    while data := file.read(dtype.itemsize << 20):
        if np.isnan(np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)).any():
            return True
    return False


class _Array(ImageFiles):
    """Training images of a converted data set, memory-mapped."""

    def __init__(self, path: Path) -> None:
        info, whole = read_array(path)
        self.path, self.image_shape, self.notes = path, info.image_shape, info.notes
        self.images = splits(info, whole)["train"].images
        self.count = len(self.images)

    def _read(self, parts: list[range]) -> Iterator[np.ndarray]:
        for part in parts:
            yield np.array(self.images[part.start : part.stop].numpy())
