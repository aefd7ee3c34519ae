"""Cache for classifier weights and reference statistics, keyed by content hash."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ersde_lit.data import ImageArray, ImageDataModule
from ersde_lit.data.array import ArrayInfo, is_converted
from ersde_lit.metrics.image_files import ImageFiles

CHUNK = 10_000  # images hashed at a time: a memory map stays on disk


def cache_folder(cache: str | Path | None = None) -> Path:
    """`cache`, or `ersde_lit` in $XDG_CACHE_HOME or ~/.cache. It need not exist."""
    if cache is not None:
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ersde_lit"


def digest(text: str, tensors: Iterable[Tensor]) -> str:
    """16 hex digits of SHA-256 over the text and the bytes of the tensors, in whatever chunks they come."""
    sha = hashlib.sha256(text.encode())
    for tensor in tensors:
        for chunk in torch.atleast_1d(tensor.detach()).split(CHUNK):
            sha.update(chunk.cpu().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def digest_of(source: ImageDataModule | ImageFiles, text: str, tensors: Iterable[Tensor]) -> str:
    """`digest` of the text and of the training images, `tensors`; of a converted folder, its checksums instead."""
    if type(source) is ImageArray:  # a subclass may serve other images
        folder, count = Path(source.root).expanduser(), len(source.split("train").labels)
    elif isinstance(source, ImageFiles) and is_converted(source.path):
        folder, count = source.path, source.count
    else:
        return digest(text, tensors)
    info = ArrayInfo.read(folder)
    return digest(repr((text, sorted(info.sha256.items()), count)), tensors if not info.sha256 else ())
