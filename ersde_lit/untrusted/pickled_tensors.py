"""Tensors and numpy's arrays in untrusted pickles, whose storages are the bytes of files of `torch.save`.

No more memory is allocated than the file has bytes, and a tensor must be a dense view within its storage.
"""

import io
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ersde_lit.untrusted.restricted_pickle import AllowedNames, GlobalName, PickledObject, Refused, Stream, read_pickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before its zip format
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}
_ARRAY = GlobalName("numpy", "ndarray")
STORAGES = frozenset({(module, name) for module in ("torch", "torch.cuda") for name in _DTYPES})


class Storage(NamedTuple):
    """Numbers of one type, in a row."""

    values: Tensor  # [n]


def load_from_bytes(data: Any) -> Storage:
    """Replaces `torch.storage._load_from_bytes`: a storage from the bytes of a file of `torch.save` before 1.6."""
    if not isinstance(data, bytes):
        raise Refused("a storage that is no bytes")
    stream = io.BytesIO(data)
    read_head(stream)
    claim = read_pickle(stream, AllowedNames({}, STORAGES, Claim.of))
    keys = read_pickle(stream, AllowedNames({}))
    if not isinstance(claim, Claim) or keys != [claim.key]:
        raise Refused("a storage file that holds something else")
    length, here = int.from_bytes(stream.read(8), "little"), stream.tell()
    if length != claim.length or length * claim.dtype.itemsize != len(data) - here:
        raise Refused(f"a storage of {len(data) - here:,} bytes that claims {claim.length:,} numbers")
    if not length:
        return Storage(torch.empty(0, dtype=claim.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bytes are read-only; copies, one a call, could fill the memory
        return Storage(torch.frombuffer(memoryview(data)[here:], dtype=claim.dtype))


def read_head(stream: Stream) -> None:
    """Reads and checks the beginning of a file of `torch.save` before 1.6."""
    plain = AllowedNames({})
    if (read_pickle(stream, plain), read_pickle(stream, plain)) != (_MAGIC, _PROTOCOL):
        raise Refused("a storage that is not as torch.save writes it")
    system = read_pickle(stream, plain)
    if not isinstance(system, dict) or system.get("little_endian") is not True or sys.byteorder != "little":
        raise Refused("a storage of a big-endian machine")


class Claim(NamedTuple):
    """Type, key and length of a storage, as its persistent id claims them."""

    dtype: torch.dtype
    key: str
    length: int

    @classmethod
    def of(cls, identity: Any) -> "Claim":
        match identity:
            case ("storage", GlobalName(name=name), str(key), str(), int(length), None) if length >= 0:
                return cls(_DTYPES[name], key, length)
        raise Refused("a storage that is not as torch.save writes it")


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Tensor:
    """Replaces `torch._utils._rebuild_tensor_v2`; refuses views that leave the storage, overlap or have gaps."""
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise Refused("a tensor whose storage, offset, size or stride is none")
    if len(size) != len(stride) or not is_dense(size, stride):
        raise Refused(f"a tensor whose elements overlap or leave gaps: size {size[:8]}, stride {stride[:8]}"[:150])
    if offset + math.prod(size) > len(storage.values):
        raise Refused(f"a tensor that leaves its storage of {len(storage.values):,} numbers: size {size[:8]}"[:150])
    return storage.values.as_strided(size, stride, offset)


def is_dense(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements of a view are contiguous in some order of the axes."""
    expected = 1
    for step, length in sorted((step, length) for step, length in zip(stride, size, strict=True) if length > 1):
        if step != expected:
            return False
        expected *= length
    return True


def rebuild_parameter(data: Any, *others: Any) -> Tensor:
    """Replaces `torch._utils._rebuild_parameter`; the result is a plain tensor."""
    if not isinstance(data, Tensor):
        raise Refused("a parameter that is no tensor")
    return data


def numpy_dtype(code: Any, *others: Any) -> PickledObject:
    """Replaces `numpy.dtype(code)`; the byte order is in the object's state."""
    return PickledObject(GlobalName("numpy", "dtype"), (code,))


def numpy_scalar(dtype: Any, data: Any) -> float | int:
    """Replaces numpy's `scalar`; the result is a plain number."""
    match dtype, data:
        case PickledObject(arguments=("f8" | "f4" | "i8" | "i4" as code,), state=(int(), "<", *_)), bytes() if len(
            data
        ) == int(code[1]):
            return np.frombuffer(data, f"<{code}")[0].item()
    raise Refused("a number of numpy's that cannot be read")


def array(value: Any) -> np.ndarray:
    """Array that a placeholder describes: no larger than its bytes in the file."""
    match value:
        case PickledObject(
            state=(1, tuple(shape), PickledObject(arguments=("f8" | "f4" as code, *_), state=(_, "<", *_)), order, data)
        ) if isinstance(data, bytes | bytearray) and all(type(n) is int and n >= 0 for n in shape):
            if math.prod(shape) * int(code[1]) != len(data):
                raise Refused(f"an array {list(shape)[:8]} of {code} in {len(data):,} bytes")
            return np.frombuffer(data, f"<{code}").reshape(shape, order="F" if order else "C")
    raise Refused("an array that cannot be read: only float32 and float64 of little-endian machines are")


def _reconstruct(*arguments: Any) -> PickledObject:
    """Placeholder of a numpy array, whose content follows."""
    return PickledObject(_ARRAY)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledObject:
    """Placeholder of a numpy array with its content, by pickle protocol 5."""
    return PickledObject(_ARRAY, (), (1, shape, dtype, order == "F", data))


def _encode(text: Any, encoding: Any) -> bytes:
    """Result of `_codecs.encode`, by which pickle protocol 2 stores bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("bytes that cannot be read")
    return text.encode("latin1")


def _set(values: Any) -> set[str]:
    if not isinstance(values, list) or len(values) > 16 or not all(isinstance(value, str) for value in values):
        raise Refused("a set of something else than a few words")
    return set(values)


_NUMBERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): numpy_dtype,
    **{(f"numpy.{core}.multiarray", "scalar"): numpy_scalar for core in ("core", "_core")},
}
TENSORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): load_from_bytes,
    ("collections", "OrderedDict"): lambda: {},
    ("builtins", "set"): _set,
    **_NUMBERS,
}
ARRAYS = AllowedNames(
    {
        ("_codecs", "encode"): _encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
        **_NUMBERS,
    },
    frozenset({_ARRAY}),
)
