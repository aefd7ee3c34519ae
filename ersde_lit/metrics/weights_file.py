"""Weights file: reads the weights of a features network and runs none of the file's code."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ersde_lit.errors import UserError


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """State dict in this file, and the file's SHA-256.

    Raises:
        ValueError: no such file, or it holds anything but tensors by name; none of its code is run.
    """
    try:
        data = path.read_bytes()
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"the weights {path} cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} is not used: it is damaged, or would run code of its own when read") from None
    except Exception as error:  # whatever torch says of a damaged file
        raise UserError(f"{path} holds no weights: {(str(error) or 'it ends too soon').splitlines()[0]}") from None
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(w, Tensor) for n, w in state.items()):
        raise UserError(f"{path} holds no weights by name")
    if bad := [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise UserError(f"{path}: the weights {bad[0]} are not finite")
    return state, hashlib.sha256(data).hexdigest()


def mismatch(path: Path, network: str, error: RuntimeError) -> UserError:
    """What `load_state_dict` said of another network's weights, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return UserError(f"{path} does not hold {network}'s weights: {lines[min(1, len(lines) - 1)][:120]}")
