"""numpy's arrays in untrusted pickles, as placeholders until `array` reads them."""

import math
from typing import Any

import numpy as np

from ersde_lit.untrusted.pickled_tensors import numpy_dtype, numpy_scalar
from ersde_lit.untrusted.restricted_pickle import AllowedNames, GlobalName, PickledObject, Refused

_ARRAY = GlobalName("numpy", "ndarray")


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


ARRAYS = AllowedNames(
    {
        ("numpy", "dtype"): numpy_dtype,
        ("_codecs", "encode"): _encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): numpy_scalar for core in ("core", "_core")},
    },
    frozenset({_ARRAY}),
)
