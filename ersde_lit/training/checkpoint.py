"""Checkpoints: written whole or not at all, read without running anybody's code."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ersde_lit.training.module import SPEC_KEY, DiffusionModule
from ersde_lit.training.spec import build


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, renamed into place when whole: a kill leaves the old file or the new one.

    Reading runs nobody's code; what cannot be read raises ValueError in one line.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        temporary = f"{path}.tmp"  # always this one, so that kills leave no more than one behind
        try:
            super().save_checkpoint(checkpoint, temporary, storage_options)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # a machine that goes down must not keep the name without the content
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(path)


def load(path: str | Path, trust: bool = False) -> DiffusionModule:
    """The module a checkpoint holds, raw and averaged weights both, in eval mode on the CPU.

    Args:
        path: a .ckpt file written by `fit`.
        trust: also import network, process and density classes from outside `ersde_lit`.

    Raises:
        ValueError: the file is missing, damaged, not one of ours, or names classes that are not trusted.
    """
    checkpoint = read(path)
    spec = {name: build(value, trust) for name, value in checkpoint[SPEC_KEY].items()}
    try:
        module = DiffusionModule(**spec)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except (TypeError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0].rstrip(":")
        raise ValueError(f"checkpoint {path} does not fit its own description: {first}") from None
    return module.eval()


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint file is as it was written: every checksum in it is right. Reads it all and keeps nothing."""
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads the index alone
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # torch and zipfile have many ways to say that a file is damaged
        return False


def read(path: str | Path) -> dict[str, Any]:
    """The checkpoint's content as plain data and tensors; raises ValueError as `load` does."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint at {path}: check the path (`fit` prints it at the end)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError):
        raise ValueError(f"checkpoint {path} is damaged, truncated or not a checkpoint of ersde_lit") from None
    if not isinstance(checkpoint, dict) or SPEC_KEY not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is a checkpoint, but not one that ersde_lit's fit wrote")
    return checkpoint
