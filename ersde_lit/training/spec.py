"""Plain-data descriptions of objects, {"class_path": ..., "init_args": ...}, and objects rebuilt from them.

A checkpoint holds one, so that it rebuilds its model alone and can be read with `weights_only=True`.
"""

import dataclasses
import inspect
from importlib import import_module
from typing import Any

import numpy as np

from ersde_lit.networks import Network

Spec = dict[str, Any]


def describe(value: Any) -> Any:
    """Plain data for a network, a dataclass, a container of them, or a number or string (as it is).

    Raises:
        TypeError: a value that plain data cannot hold.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Network):
        return {"class_path": value.spec["class_path"], "init_args": describe(value.spec["init_args"])}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} cannot be kept in a checkpoint: use numbers, strings, lists and dataclasses of them")


def completed(kept: Any, value: Any) -> Any:
    """The description kept of a dataclass like `value`, with the defaults of fields that are younger than it."""
    if not (isinstance(kept, dict) and isinstance(kept.get("init_args"), dict)):
        return kept
    defaults = {
        f.name: describe(f.default)
        for f in dataclasses.fields(value)
        if f.init and f.default is not dataclasses.MISSING
    }
    return {**kept, "init_args": defaults | kept["init_args"]}


def build(spec: Any, trust: bool = False) -> Any:
    """The inverse of `describe`.

    Args:
        trust: also import classes from outside `ersde_lit`; importing runs their module's code.

    Raises:
        ValueError: a class that is not trusted, does not exist or does not take these arguments.
    """
    if isinstance(spec, list):
        return [build(item, trust) for item in spec]
    if not (isinstance(spec, dict) and set(spec) == {"class_path", "init_args"}):
        return {key: build(item, trust) for key, item in spec.items()} if isinstance(spec, dict) else spec
    path = str(spec["class_path"])
    cls = _find(path, trust)
    try:
        arguments = {name: build(value, trust) for name, value in spec["init_args"].items()}
        inspect.signature(cls).bind(**arguments)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not take the arguments it was saved with: {error}") from None
    return cls(**arguments)


def _find(path: str, trust: bool) -> type:
    module, _, name = path.rpartition(".")
    if not (trust or module.split(".")[0] == "ersde_lit"):
        raise ValueError(
            f"the class {path} is not part of ersde_lit: pass trust=True (--trust) if you trust its source"
        )
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(f"there is no class {path}: install the package it comes from") from None
    if not (isinstance(cls, type) and (issubclass(cls, Network) or dataclasses.is_dataclass(cls))):
        raise ValueError(f"{path} is neither a Network nor a dataclass: it cannot come from a checkpoint of ours")
    return cls
