"""Reader of untrusted npz files: headers are checked against the file size before memory is allocated."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from ersde_lit.errors import UserError
from ersde_lit.untrusted.archives import MIB, open_zip


class Array(NamedTuple):
    """An array that is not read yet."""

    file: IO[bytes]  # at its first byte
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


@contextmanager
def open_array(path: str | Path, name: str) -> Iterator[Array]:
    """Array `name` of an npz file, to be read as a stream.

    Raises:
        KeyError: it has no such array.
        ValueError: no zip file, or the array is shorter or longer than its header says.
        Exception: whatever numpy and zipfile say of damaged data.
    """
    with open_zip(path, largest=sys.maxsize) as archive:
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as file:
            header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = header(file)
            claimed, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
            if claimed != there and not dtype.hasobject:
                what = "cut short" if claimed > there else "longer than it says"
                raise UserError(f"{name} is {what}: {claimed:,} bytes by its header, {there:,} in the file")
            yield Array(file, shape, dtype, fortran)


def load_array(path: str | Path, name: str, largest: int = 1024 * MIB) -> np.ndarray:
    """Array `name` of an npz file, of at most so many bytes.

    Raises:
        KeyError, ValueError: as `open_array`; or it is larger, or holds Python objects, which are pickled.
    """
    with open_array(path, name) as array:
        if array.dtype.hasobject:
            raise UserError(f"Object arrays cannot be loaded: {name} is pickled")
        if (size := math.prod(array.shape) * array.dtype.itemsize) > largest:
            raise UserError(f"{name} takes {size:,} bytes, and at most {largest:,} are read")
        values = np.frombuffer(bytearray(array.file.read()), array.dtype)
        return values.reshape(array.shape, order="F" if array.fortran else "C")
