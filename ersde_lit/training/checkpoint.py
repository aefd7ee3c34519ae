"""Checkpoint files: atomic writing, and reading without executing code from the file."""

import zipfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.files import replacing
from ersde_lit.renamed import current
from ersde_lit.solvers import SavedTables
from ersde_lit.training.averaged import IMAGES_KEY, SPEC_KEY
from ersde_lit.training.module import TABLES_KEY, DiffusionModule
from ersde_lit.training.spec import at_most, build, first_line
from ersde_lit.untrusted.torch_before_zip import is_before_zip, read_before_zip

Module = TypeVar("Module", bound=LightningModule)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written to a temporary file and renamed: a kill leaves the old file or the new one.

    Reading executes no code from the file; what cannot be read raises ValueError in one line.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with replacing(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(path, mmap=True)  # one copy for all ranks of a machine


def load(path: str | Path, trust: bool = False) -> DiffusionModule:
    """Loads the module of a checkpoint, with raw and averaged weights, in eval mode on the CPU.

    Args:
        path: a .ckpt file written by `fit`; torch.save's format before 1.6, and names that torch.compile or
            DistributedDataParallel gave its weights, are read too.
        trust: also import network, process and density classes from outside `ersde_lit`.

    Raises:
        UserError: the file is missing, damaged, not one of ours, or names classes that are not trusted.
    """
    checkpoint = read(path)
    return rebuild(DiffusionModule, checkpoint[SPEC_KEY], checkpoint, path, trust)


def rebuild(kind: type[Module], settings: dict[str, Any], checkpoint: dict[str, Any], path: Any, trust: bool) -> Module:
    """Builds the module that `settings` describe, with the checkpoint's weights, in eval mode on the CPU."""
    try:
        if not trust:  # what is not ours may need more than shapes to be made
            _check_size(settings, checkpoint["state_dict"])
        module = kind(**{str(name): build(value, trust) for name, value in settings.items()})
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # what a file says may be wrong in any way
        raise UserError(f"checkpoint {path} cannot be rebuilt: {first_line(error)}") from error
    return module.eval()


def _check_size(settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Raises UserError, before memory is allocated, where a description needs more weights than the file has."""
    numbers = sum(min(w.numel(), w.untyped_storage().nbytes() // w.itemsize) for w in weights.values())
    with torch.device("meta"), at_most(2 * numbers):  # some weights are registered twice
        for value in settings.values():
            build(value)


def carry(checkpoint: str | Path, tables: SavedTables, out: str | Path) -> None:
    """Writes a checkpoint of a denoiser to `out`, which may be itself, with tables that it samples with by default.

    Raises:
        UserError: as `load`, or it is a classifier's or of a model that restores images.
        OSError: it cannot be written.
    """
    AtomicCheckpointIO().save_checkpoint(carrying(checkpoint, tables), out)


def carrying(checkpoint: str | Path, tables: SavedTables) -> dict[str, Any]:
    """The content of a checkpoint, with these tables."""
    content = read(checkpoint)
    if "network" not in content[SPEC_KEY]:
        raise UserError(f"{checkpoint} is no checkpoint of a denoiser, which tables are for")
    if "noise" in content[SPEC_KEY]:
        raise UserError(f"{checkpoint} is of a model that restores images, and tables sample them")
    return content | {TABLES_KEY: tables.plain()}


def is_whole(path: str | Path) -> bool:
    """Whether every checksum in a checkpoint file is right; reads all of it."""
    try:
        _load(path, mmap=True)
        return True
    except Exception:  # torch and zipfile have many ways to say that a file is damaged
        return False


def read(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint as plain data and tensors, and verifies its checksums (torch.save before 1.6 wrote none).

    Under `SPEC_KEY` is a dict, under "state_dict" one of tensors by name, and "images_seen", if any, is a number.
    """
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path or repr('')}: check the path (`fit` prints it at the end)")
    try:
        checkpoint = read_before_zip(path) if is_before_zip(path) else _load(path, mmap=mmap)
    except Exception:
        if Path(path).suffix == ".safetensors":
            raise UserError(f"{path} is no checkpoint: `import {path} --out model.ckpt` makes one of it") from None
        raise UserError(f"checkpoint {path} is damaged, truncated or not a checkpoint of ersde_lit") from None
    if not _is_ours(checkpoint):
        raise UserError(f"{path} is a checkpoint, but not one that ersde_lit's fit wrote")
    try:
        return checkpoint | {SPEC_KEY: current(checkpoint[SPEC_KEY])}
    except RecursionError:
        raise UserError(f"checkpoint {path} describes a model that contains itself") from None


def _load(path: str | Path, **how: Any) -> Any:
    with zipfile.ZipFile(path) as file:
        if file.testzip() is not None:  # torch itself does not look
            raise zipfile.BadZipFile
    return torch.load(path, map_location="cpu", weights_only=True, **how)


def _is_ours(checkpoint: Any) -> bool:
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get(SPEC_KEY), dict)):
        return False
    weights = checkpoint.get("state_dict")
    if not (isinstance(weights, dict) and isinstance(checkpoint.get(IMAGES_KEY, 0), int)):
        return False
    return all(isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items())
