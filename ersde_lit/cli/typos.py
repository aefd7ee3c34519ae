"""Misspelt names in a configuration that its parser has refused: where they stand, and the nearest name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any, get_type_hints

from lightning.pytorch import Trainer

from ersde_lit.cli.parser import merged_options, with_arguments
from ersde_lit.training import DiffusionModule, RollingCheckpoint

ROOTS: dict[str, Any] = {"model": DiffusionModule, "trainer": Trainer, "checkpoint": RollingCheckpoint}
OTHERS = (
    "data", "seed_everything", "run", "init_from", "init_skip", "device_batch_size", "compile", "channels_last",
    "ckpt_path", "weights_only", "verbose", "return_predictions", "config", "print_config", "help",
)  # fmt: skip
COMMAND = ROOTS | dict.fromkeys(OTHERS)


def misspelt(arguments: Sequence[str], files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Line about the first name in the configuration files or the command line that nothing has; None without one."""
    merged: dict[str, Any] = {}
    for file, content in files.items():
        if found := next(_of_names(content, COMMAND, ""), None):
            return f"{file}, {found}"
        merged = merged_options(merged, content)
    found = next(_of_names(with_arguments(merged, arguments), COMMAND, ""), None)
    return found and f"command line, {found}"


def _of_names(options: Any, kinds: Mapping[str, Any], place: str) -> Iterator[str]:
    """Misspelt names among options, of whose values these are the kinds, and inside the values."""
    for name, value in options.items() if isinstance(options, Mapping) else ():
        name = str(name).removesuffix("+")  # YAML has names that are no texts
        if name in kinds:
            yield from _of_value(value, kinds[name], f"{place}.{name}".lstrip("."))
        elif name != "help":
            yield _line(place or "top level", name, [*kinds])


def _of_value(value: Any, kind: Any, place: str) -> Iterator[str]:
    """Misspelt names inside a value, whose class is known to be `kind` or is named by its class_path."""
    if isinstance(value, list):
        for item in value:
            yield from _of_value(item, None, place)
    elif isinstance(value, str) and kind is not str:
        yield from _of_path(value, place)
    elif isinstance(value, Mapping) and "class_path" in value:
        path = str(value["class_path"])
        found = find_class(path)
        known = {"class_path", "init_args", "dict_kwargs"}  # and, for short, --data.root for --data.init_args.root
        known |= {*signature(found).parameters} if found is not None else set()
        yield from (_line(place, name, ["class_path", "init_args"]) for name in value if name not in known)
        yield from _of_path(path, place)
        if found is not None:
            yield from _of_names(value.get("init_args"), _kinds(found), place)
    elif is_dataclass(kind) or kind in ROOTS.values():
        yield from _of_names(value, _kinds(kind), place)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _of_value(item, None, f"{place}.{name}")


def _kinds(of: Any) -> dict[str, Any]:
    """The types of a class's arguments, as far as they are known, by name."""
    try:
        types = get_type_hints(of if is_dataclass(of) else of.__init__)
    except (NameError, TypeError):
        types = {}
    return {name: types.get(name) for name in signature(of).parameters}


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


def _line(place: str, name: Any, known: Sequence[str]) -> str:
    near = get_close_matches(str(name), known, 1)
    return f"{place}: there is no {name}" + (f"; did you mean {near[0]}?" if near else f", only {', '.join(known)}")
