"""Description of objects as plain data, {"class_path": ..., "init_args": ...}, and rebuilding of objects from it.

A checkpoint holds one, so it rebuilds its model without a configuration and can be read with `weights_only=True`.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.renamed import current

Spec = dict[str, Any]


def describe(value: Any) -> Any:
    """Describes a network, dataclass, number, string, or a container of them as plain data.

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


def with_defaults(spec: Any, value: Any) -> Any:
    """Completes the description of an object of the class of `value` with that class's default arguments."""
    if value is None or not (isinstance(spec, dict) and isinstance(spec.get("init_args"), dict)):
        return spec
    arguments = dict(spec["init_args"])
    for parameter in inspect.signature(type(value)).parameters.values():
        if parameter.name not in arguments and parameter.default is not inspect.Parameter.empty:
            with suppress(TypeError):  # what plain data cannot hold was never in a description
                arguments[parameter.name] = describe(parameter.default)
    return {**spec, "init_args": arguments}


def flat(spec: Any, key: str = "") -> dict[str, Any]:
    """Values of a description by dotted keys; "network" is the class of a network, "network.width" its argument."""
    if not isinstance(spec, dict):
        return {key: spec}
    values: dict[str, Any] = {}
    for name, item in spec.items():
        values |= flat(item, key if name in ("class_path", "init_args") else f"{key}.{name}".lstrip("."))
    return values


def differences(theirs: Any, ours: Any) -> dict[str, tuple[Any, Any]]:
    """Values of two descriptions by the keys at which they differ; where classes do, their arguments are left out."""
    there, here = flat(theirs), flat(ours)
    found = {key: (there.get(key), here.get(key)) for key in {**there, **here} if there.get(key) != here.get(key)}
    return {key: pair for key, pair in found.items() if key.rpartition(".")[0] not in found}


def in_words(differences: dict[str, tuple[Any, Any]]) -> str:
    """Lists the values there and here of up to four keys."""
    first = [f"{key} is {there} there and {here} here" for key, (there, here) in [*differences.items()][:4]]
    return ", ".join(first + [f"and {len(differences) - 4} more"] * (len(differences) > 4))


def build(spec: Any, trust: bool = False) -> Any:
    """Rebuilds what `describe` described.

    Args:
        trust: also import classes from outside `ersde_lit`; importing runs their module's code.

    Raises:
        UserError: a class that is not trusted, does not exist or does not take these arguments.
    """
    if isinstance(spec, list):
        return [build(item, trust) for item in spec]
    if not (isinstance(spec, dict) and set(spec) == {"class_path", "init_args"}):
        return {key: build(item, trust) for key, item in spec.items()} if isinstance(spec, dict) else spec
    path, init_args = str(current(str(spec["class_path"]))), spec["init_args"]
    cls = _find(path, trust)
    if not isinstance(init_args, dict):
        raise UserError(f"{path} was saved with unnamed arguments")
    arguments = {str(name): build(value, trust) for name, value in init_args.items()}
    try:
        return cls(**arguments)
    except Exception as error:  # constructors fail in many ways
        raise UserError(f"{path} does not take the arguments it was saved with: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":")[:200] if lines else type(error).__name__


@contextmanager
def at_most(numbers: int) -> Iterator[None]:
    """Raises UserError as soon as a network being built has more weights; a small file may ask for many."""
    left = numbers

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise UserError(f"it describes a larger network than its {numbers:,} weights")

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _find(path: str, trust: bool) -> type:
    module, _, name = path.rpartition(".")
    if not (trust or module.split(".")[0] == "ersde_lit"):
        raise UserError(f"the class {path} is not part of ersde_lit: pass trust=True (--trust) if you trust its source")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"there is no class {path}: install the package it comes from") from None
    if not (isinstance(cls, type) and (issubclass(cls, Network) or dataclasses.is_dataclass(cls))):
        raise UserError(f"{path} is neither a Network nor a dataclass: it cannot come from a checkpoint of ours")
    return cls
