"""State dicts of `torch.save`, by `weights_only` and within the memory of their file."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ersde_lit.pickled_tensors import is_dense


def read_zip(path: str | Path) -> dict[str, Any]:
    """What a .pt or .ckpt file of torch.save (of 1.6 or later) holds; its tensors stay in the file until they are used.

    Raises:
        ValueError: in one line, a file that is damaged, hostile or of something else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            records = file.infolist()
        size = Path(path).stat().st_size
        if any(r.compress_type != zipfile.ZIP_STORED for r in records) or sum(r.file_size for r in records) > size:
            raise ValueError(f"{path} refused: it is compressed, which torch.save does not do")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (zipfile.BadZipFile, EOFError, pickle.UnpicklingError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged, or holds more than weights: {_first_line(error)}") from None
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is damaged, truncated or hostile: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dictionary of weights")
    return content


def state_dict(content: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The content of a file as weights by name.

    Raises:
        ValueError: it is something else, a tensor is no dense view, or a storage claims more or less than is there.
    """
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} is no state dict: it has {str(name)[:40]!r}, a {type(value).__name__}")
        if value.layout != torch.strided or not is_dense(value.shape, value.stride()):
            raise ValueError(f"{path}: the weight {name[:80]!r} is no dense tensor")
    claimed = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in content.values()}
    with zipfile.ZipFile(path) as file:
        there = [r.file_size for r in file.infolist() if re.fullmatch(r"[^/]+/data/\d+", r.filename)]
    if sorted(filter(None, claimed.values())) != sorted(filter(None, there)):
        raise ValueError(f"{path} refused: its storages are not as large as they claim")
    return content


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:150] if text else type(error).__name__
