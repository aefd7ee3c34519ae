"""Reader of untrusted `torch.save` files in the format before 1.6, or of `_use_new_zipfile_serialization=False`."""

import mmap
from pathlib import Path
from typing import Any

import torch

from ersde_lit.errors import UserError
from ersde_lit.untrusted.pickled_tensors import STORAGES, TENSORS, Claim, Storage, read_head
from ersde_lit.untrusted.restricted_pickle import AllowedNames, Refused, Stream, read_pickle

_BEGINNING = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, pickled
_FUNCTIONS = {name: call for name, call in TENSORS.items() if name != ("torch.storage", "_load_from_bytes")}


def is_before_zip(path: str | Path) -> bool:
    """Whether a file begins like one of that format."""
    with open(path, "rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def read_before_zip(path: str | Path) -> Any:
    """The content: plain containers, numbers, strings and tensors. No code is run.

    The format has no checksums: only damage to its structure is noticed.

    Raises:
        UserError: a file that is damaged, hostile, or has other content.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            return _read(stream, Path(path).stat().st_size)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _read(stream: Stream, size: int) -> Any:
    storages: dict[str, Storage] = {}  # tensors are views of them, made before they are filled
    claimed = 0

    def storage(identity: Any) -> Storage:
        nonlocal claimed
        claim = Claim.of(identity)
        if claim.key not in storages:
            claimed += claim.length * claim.dtype.itemsize
            if claimed > size:
                raise Refused(f"its tensors claim {claimed:,} bytes, and it has {size:,}")
            storages[claim.key] = Storage(torch.empty(claim.length, dtype=claim.dtype))
        found = storages[claim.key]
        if (found.values.dtype, len(found.values)) != (claim.dtype, claim.length):
            raise Refused("a storage of two types or lengths")
        return found

    read_head(stream)
    content = read_pickle(stream, AllowedNames(_FUNCTIONS, STORAGES, storage))
    keys = read_pickle(stream, AllowedNames({}))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != {*storages}:
        raise Refused("it does not list its storages")
    for key in keys:
        values = storages[key].values
        length, data = int.from_bytes(stream.read(8), "little"), stream.read(values.nbytes)
        if length != len(values) or len(data) != values.nbytes:
            raise Refused(f"a storage of {len(data):,} bytes that claims {len(values):,} numbers")
        if data:
            values.copy_(torch.frombuffer(bytearray(data), dtype=values.dtype))
    return content
