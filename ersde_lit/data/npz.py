"""Reader of untrusted npz files: headers are checked against the file size before memory is allocated."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from ersde_lit.data.decode import decoder_errors
from ersde_lit.errors import UserError
from ersde_lit.untrusted.archives import MIB, open_zip


class Array(NamedTuple):
    """An array that is not read yet."""

    file: IO[bytes]  # at its first byte
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


def array_names(path: str | Path) -> list[str]:
    """Names of the arrays in an npz file.

    Raises:
        UserError: it cannot be read, or is no zip file.
    """
    try:
        with open_zip(path, largest=sys.maxsize) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def open_array(path: str | Path, name: str) -> Iterator[Array]:
    """Array `name` of an npz file, to be read as a stream.

    Raises:
        UserError: as `array_names`; or it has no such array, it is damaged, or is shorter or longer than its header
            says; or whatever is raised while it is open.
    """
    if name not in (names := array_names(path)):
        raise UserError(f"{path} has no array {name}, only {', '.join(names)[:100] or 'nothing'}")
    with (
        decoder_errors(f"{path}: {name} cannot be used"),
        open_zip(path, largest=sys.maxsize) as archive,
        archive.open(f"{name}.npy") as file,
    ):
        header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(file)
        claimed = math.prod(shape) * dtype.itemsize
        there = archive.getinfo(f"{name}.npy").file_size - file.tell()
        if claimed != there and not dtype.hasobject:
            what = "cut short" if claimed > there else "longer than it says"
            raise UserError(f"it is {what}: {claimed:,} bytes by its header, {there:,} in the file")
        yield Array(file, shape, dtype, fortran)


def load_array(path: str | Path, name: str, largest: int = 1024 * MIB) -> np.ndarray:
    """Array `name` of an npz file, of at most so many bytes.

    Raises:
        UserError: as `open_array`; or it is larger, or holds Python objects, which are pickled.
    """
    with open_array(path, name) as array:
        if array.dtype.hasobject:
            raise UserError("it is of Python objects, which are pickled")
        if (size := math.prod(array.shape) * array.dtype.itemsize) > largest:
            raise UserError(f"it takes {size:,} bytes, and at most {largest:,} are read")
        values = np.frombuffer(bytearray(array.file.read()), array.dtype)
        return values.reshape(array.shape, order="F" if array.fortran else "C")
