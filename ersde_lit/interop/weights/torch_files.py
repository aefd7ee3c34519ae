"""Reader for state dicts of `torch.save`, which runs no code and takes no more memory than the file has bytes."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.training.spec import first_line
from ersde_lit.training.weights import plain_name
from ersde_lit.untrusted.pickled_tensors import is_dense
from ersde_lit.untrusted.torch_before_zip import is_before_zip, read_before_zip

# Keys of state dicts, averaged weights first.
_AVERAGED = ("ema", "params_ema", "ema_state_dict", "model_ema", "ema_model")
_RAW = ("state_dict", "model_state_dict", "model", "params", "network", "net", "module", "shadow")
_COUNTS = ("n_averaged",)  # of torch's AveragedModel, among the weights


def read_torch(path: str | Path) -> dict[str, Any]:
    """Content of a file of torch.save; of the zip format (since 1.6), tensors are mapped into memory.

    Raises:
        UserError: a file that is damaged, hostile or of something else.
    """
    content = read_before_zip(path) if is_before_zip(path) else _read_zip(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary of weights: it holds nothing as 'ema', 'state_dict' or by names")
    return content


def state_dict(content: dict[str, Any], path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a file's content, averaged ones if there are any, without prefixes of wrappers; and notes.

    Raises:
        UserError: there are none, something else is among them, or a tensor is no dense view.
    """
    found, notes = _unwrapped(content, [])
    weights: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} is no state dict: it has {str(name)[:40]!r}, a {type(value).__name__}")
        if value.layout != torch.strided or not is_dense(value.shape, value.stride()):
            raise UserError(f"{path}: the weight {name[:80]!r} is no dense tensor")
        if (new := plain_name(name)) in weights:
            raise UserError(f"{path} has the weight {new[:80]!r} twice, as {name[:80]!r} too")
        if new not in _COUNTS:
            weights[new] = value
    return weights, notes


def _unwrapped(content: Mapping[Any, Any], notes: list[str], depth: int = 0) -> tuple[Mapping[Any, Any], list[str]]:
    kept = [key for key in (*_AVERAGED, *_RAW) if isinstance(content.get(key), dict) and _tensors(content[key])]
    if not kept or depth == 2:
        return content, notes
    more = [str(key)[:40] for key, value in content.items() if key != kept[0] and _tensors(value)]
    others = f", not those under {' or '.join(map(repr, more[:5]))}" if more else ""
    return _unwrapped(content[kept[0]], [*notes, f"the weights are those under {kept[0]!r}{others}"], depth + 1)


def _read_zip(path: str | Path) -> Any:
    try:
        with zipfile.ZipFile(path) as file:
            records = file.infolist()
        size = Path(path).stat().st_size
        if any(r.compress_type != zipfile.ZIP_STORED for r in records) or sum(r.file_size for r in records) > size:
            raise UserError(f"{path} refused: it is compressed, which torch.save does not do")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        claimed = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(content)}
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than weights{_foreign(path)}: save its state dict alone") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged, or holds more than weights: {first_line(error)}") from None
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged, truncated or hostile: {first_line(error)}") from None
    there = [r.file_size for r in records if re.fullmatch(r"[^/]+/data/\d+", r.filename)]
    if sorted(filter(None, claimed.values())) != sorted(filter(None, there)):
        raise UserError(f"{path} refused: its storages are not as large as they claim")
    return content


def _tensors(content: Any) -> list[Tensor]:
    """Tensors in nested containers, which may contain themselves."""
    found, seen, left = [], set(), [content]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, Mapping) else value
    return found


def _foreign(path: str | Path) -> str:
    """Phrase with a name in the file that `weights_only` refuses."""
    with suppress(Exception):  # its pickle may be damaged
        if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return f": it names {min(names)[:80]!r}"
    return ""
