"""Misspelt names in a configuration that its parser has refused: where they stand, and the nearest name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any, get_type_hints

from lightning.pytorch import Trainer

from ersde_lit.cli.parser import merged_options
from ersde_lit.training import DiffusionModule, RollingCheckpoint

ROOTS: dict[str, Any] = {"model": DiffusionModule, "trainer": Trainer, "checkpoint": RollingCheckpoint}
OTHERS = (
    "data", "seed_everything", "run", "init_from", "init_skip", "device_batch_size", "compile", "channels_last",
    "ckpt_path", "weights_only", "config", "print_config", "help",
)  # fmt: skip


def misspelt(arguments: Sequence[str], files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Line about the first name that nothing has; None if there is none.

    Args:
        arguments: of the command line.
        files: content of its configuration files.
    """
    merged: dict[str, Any] = {}
    for file, content in files.items():
        if found := next(_of_command(content), None):
            return f"{file}, {found}"
        merged = merged_options(merged, content)
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--"):
            key, given, text = argument[2:].partition("=")
            value: Any = text if given else following
            for name in reversed(key.split(".")):
                value = {name.removesuffix("+"): value}
            merged = merged_options(merged, value)
    return next((f"command line, {found}" for found in _of_command(merged)), None)


def _of_command(content: Mapping[str, Any]) -> Iterator[str]:
    for name, value in content.items():
        if name in ROOTS and not (isinstance(value, Mapping) and "class_path" in value):
            yield from _of_class(value, ROOTS[name], name)
        elif name in ROOTS or name in OTHERS:
            yield from _of_value(value, None, name)
        else:
            yield _line("top level", name, [*ROOTS, *OTHERS])


def _of_class(arguments: Any, kind: Any, place: str) -> Iterator[str]:
    """Misspelt names among the arguments of a class or dataclass."""
    if not isinstance(arguments, Mapping):
        return
    known = [name for name in signature(kind).parameters if name != "self"]
    try:
        types = get_type_hints(kind if is_dataclass(kind) else kind.__init__)
    except (NameError, TypeError):
        types = {}
    for name, value in arguments.items():
        name = name.removesuffix("+")
        if name in known:
            yield from _of_value(value, types.get(name), f"{place}.{name}")
        elif name != "help":
            yield _line(place, name, known)


def _of_value(value: Any, kind: Any, place: str) -> Iterator[str]:
    """Misspelt names inside a value, whose class is known to be `kind` or is named by its class_path."""
    if isinstance(value, list):
        for item in value:
            yield from _of_value(item, None, place)
    elif isinstance(value, str) and value.startswith("ersde_lit.") and kind is not str:
        yield from _of_path(value, place)
    elif isinstance(value, Mapping) and "class_path" in value:
        path = str(value["class_path"])
        found = find_class(path)
        known = {"class_path", "init_args", "dict_kwargs"}  # and, for short, --data.root for --data.init_args.root
        known |= {*signature(found).parameters} if found is not None else set()
        yield from (_line(place, name, ["class_path", "init_args"]) for name in value if name not in known)
        yield from _of_path(path, place)
        if found is not None:
            yield from _of_class(value.get("init_args"), found, place)
    elif isinstance(value, Mapping) and is_dataclass(kind):
        yield from _of_class(value, kind, place)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _of_value(item, None, f"{place}.{name}")


def _of_path(path: str, place: str) -> Iterator[str]:
    module, _, name = path.rpartition(".")
    if path.startswith("ersde_lit.") and find_class(path) is None:
        try:
            near = get_close_matches(name, dir(import_module(module)), 1)
        except ImportError:
            near = []
        yield f"{place}: there is no {path}" + (f"; did you mean {module}.{near[0]}?" if near else "")


def find_class(path: str) -> Any:
    """The class at a dotted path; None if there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _line(place: str, name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"{place}: there is no {name}" + (f"; did you mean {near[0]}?" if near else f", only {', '.join(known)}")
