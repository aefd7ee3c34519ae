"""Downsampled ImageNet (Chrabaszcz et al., 2017, arXiv:1707.08819) in npz files."""

import hashlib
from collections.abc import Sequence
from math import isqrt
from pathlib import Path

import numpy as np

from ersde_lit.data.npz import load_array, open_array
from ersde_lit.data.source import Source
from ersde_lit.errors import UserError
from ersde_lit.untrusted.archives import MIB

CLASSES = 1000
LARGEST = 4096 * MIB  # of a file's images in memory; those of 64x64 take 1.6 GB


class ImageNetBatches(Source):
    """`train_data_batch_1.npz` and so on: data uint8 [n, 3 S S], plane by plane, and labels 1 .. 1000.

    Labels become 0 .. 999. One file's images are in memory at a time.

    Args:
        paths: the files, in order.
        size: S.
        unlabelled: leave the classes out.
    """

    def __init__(self, paths: Sequence[Path], size: int, unlabelled: bool = False) -> None:
        self.paths = paths
        self.image_shape = (3, size, size)
        self.num_classes = 0 if unlabelled else CLASSES
        labels = [_labels(path, _count(path, size)) for path in paths]
        self.labels = np.concatenate(labels)
        self.ends = np.cumsum([len(part) for part in labels])
        files = [(path.name, path.stat().st_size) for path in paths]
        self.identity = hashlib.sha256(repr((files, size, unlabelled)).encode() + self.labels.tobytes()).hexdigest()
        if unlabelled:
            self.labels = np.full_like(self.labels, -1)
        self._loaded: tuple[int, np.ndarray] | None = None

    def read(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        file = np.searchsorted(self.ends, indices, side="right")
        for k in np.unique(file):
            mine = file == k
            data = self._data(k)
            images[mine] = data[indices[mine] - self.ends[k] + len(data)].reshape(-1, *self.image_shape)
        return images

    def _data(self, k: int) -> np.ndarray:
        if self._loaded is None or self._loaded[0] != k:
            self._loaded = None  # before the next one comes: each takes 1.6 GB
            self._loaded = k, load_array(self.paths[k], "data", LARGEST)
        return self._loaded[1]


def _count(path: Path, size: int) -> int:
    """Number of images of this size by the header of the array."""
    with open_array(path, "data") as array:
        shape, dtype = array.shape, array.dtype
    if dtype != np.uint8:
        raise UserError(f"{path}: `data` is {dtype}, not uint8")
    if len(shape) != 2 or shape[1] != 3 * size * size:
        side = isqrt(shape[1] // 3) if len(shape) == 2 else 0
        what = f"images of {side}x{side}: say --size {side}" if side and shape[1] == 3 * side * side else f"{shape}"
        raise UserError(f"{path}: `data` holds {what}, not [n, 3 * {size} * {size}]")
    return shape[0]


def _labels(path: Path, count: int) -> np.ndarray:
    with open_array(path, "labels") as array:
        shape, dtype = array.shape, array.dtype
    if shape != (count,) or not (np.issubdtype(dtype, np.integer) or dtype.hasobject):
        raise UserError(f"{path}: `labels` is {dtype} {shape}, not one whole number for {count} images")
    labels = load_array(path, "labels", LARGEST)
    if count and not (labels.min() >= 1 and labels.max() <= CLASSES):
        raise UserError(f"{path}: labels run from {labels.min()} to {labels.max()}, not within 1 .. {CLASSES}")
    return labels.astype(np.int64) - 1
