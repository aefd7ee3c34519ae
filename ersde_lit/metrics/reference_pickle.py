"""EDM2's reference statistics (Karras et al. 2024; github.com/NVlabs/edm2), pickled arrays, read without unpickling."""

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from ersde_lit.errors import UserError
from ersde_lit.untrusted.pickled_tensors import numpy_dtype, numpy_scalar
from ersde_lit.untrusted.restricted_pickle import AllowedNames, GlobalName, PickledObject, Refused, read_pickle

_ARRAY = GlobalName("numpy", "ndarray")


def read_statistics(path: str | Path) -> dict[str, Any]:
    """Arrays `mu` and `sigma` of Inception's features, and `num_images` if given; refuses hostile files."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            content = read_pickle(stream, _NAMES)
        fid = content.get("fid") if isinstance(content, dict) else None
        if not isinstance(fid, dict) or not {"mu", "sigma"} <= fid.keys():
            raise Refused("it holds no statistics 'mu' and 'sigma' as 'fid', as EDM2's calculate_metrics.py does")
        found = {name: _array(fid[name]) for name in ("mu", "sigma")}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    count = content.get("num_images")
    return found | ({"num_images": count} if isinstance(count, int) else {})


def _array(value: Any) -> np.ndarray:
    """Array that a `PickledObject` describes: no larger than its bytes in the file."""
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


_NAMES = AllowedNames(
    {
        ("numpy", "dtype"): numpy_dtype,
        ("_codecs", "encode"): _encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): numpy_scalar for core in ("core", "_core")},
    },
    frozenset({_ARRAY}),
)
