"""NVIDIA's pickled objects, which describe themselves by {type, version, module_src, class_name, state}.

Their loader (`torch_utils.persistence`) runs `module_src`. Here only names, arguments of constructors and tensors are
read.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.untrusted.pickled_tensors import ARRAYS, TENSORS
from ersde_lit.untrusted.restricted_pickle import AllowedNames, PickledObject, read_pickle

_DEEPEST = 20  # modules within modules


class Persistent(NamedTuple):
    """An object by the name of its class and its attributes."""

    cls: str
    state: dict[str, Any]


def _persistent(meta: Any) -> Persistent:
    """Replaces `torch_utils.persistence._reconstruct_persistent_obj`, which would run the source."""
    match meta:
        case {"type": "class", "class_name": str(cls), "state": dict(state)}:
            return Persistent(cls, state)
    raise UserError("an object whose description cannot be read")


_NAMES = AllowedNames(
    {
        **ARRAYS.functions,
        **TENSORS,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    },
    ARRAYS.classes | {("torch.nn.modules.container", name) for name in ("ModuleDict", "ModuleList")},
    dicts=frozenset({("dnnlib.util", "EasyDict")}),
)


def read_snapshot(path: str | Path) -> dict[str, Any]:
    """The dictionary in a pickle, whose objects are `Persistent`; {} where it holds something else.

    Raises:
        UserError: a file that is damaged or hostile.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            snapshot = read_pickle(content, _NAMES)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return snapshot if isinstance(snapshot, dict) else {}


def arguments(made: Persistent) -> dict[str, Any]:
    """The keyword arguments of its constructor, plain values."""
    keywords = made.state.get("_init_kwargs")
    if made.state.get("_init_args") not in ((), []) or not isinstance(keywords, dict):
        raise UserError(f"the {made.cls[:40]} does not say by which keywords it was made")
    for name, value in keywords.items():
        values = value if isinstance(value, list | tuple) else [value]
        if not isinstance(name, str) or not all(v is None or isinstance(v, bool | int | float | str) for v in values):
            raise UserError(f"its argument {str(name)[:40]!r} is no plain value")
    return keywords


def state_dict(module: Any, prefix: str = "", depth: int = 0, visited: set[int] | None = None) -> dict[str, Tensor]:
    """Parameters and buffers of a module and its submodules, by the names of a state dict; no module is there twice."""
    visited = set() if visited is None else visited
    is_module = isinstance(module, Persistent | PickledObject) and isinstance(module.state, dict)
    if not is_module or depth > _DEEPEST or id(module) in visited:
        raise UserError(f"its module {prefix[:80]!r} is none")
    visited.add(id(module))
    state: dict[str, Tensor] = {}
    for group in ("_parameters", "_buffers"):
        members = module.state.get(group)
        for name, value in members.items() if isinstance(members, Mapping) else ():
            if not isinstance(value, Tensor | None):
                raise UserError(f"its weight {(prefix + str(name))[:80]!r} is no tensor")
            if value is not None:
                state[f"{prefix}{name}"] = value
    modules = module.state.get("_modules")
    for name, child in modules.items() if isinstance(modules, Mapping) else ():
        if child is not None:
            state |= state_dict(child, f"{prefix}{name}.", depth + 1, visited)
    return state
