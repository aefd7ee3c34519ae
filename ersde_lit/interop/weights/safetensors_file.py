"""Our own form to publish: weights in safetensors, and the plain-data description of their model in its metadata.

Tensors are named `averaged.NAME` and, where they differ, `raw.NAME`, by the names of the network's state dict; those of
a noisy classifier trained without averages `network.NAME`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.files import replacing
from ersde_lit.interop.weights.model import ImportedClassifier, ImportedModel
from ersde_lit.training.checkpoint import read
from ersde_lit.training.classes import CLASSES_KEY
from ersde_lit.training.module import IMAGES_KEY, SPEC_KEY
from ersde_lit.training.noisy_classifier import KIND
from ersde_lit.training.weights import plain_name

_PARTS = {
    "ema_denoiser.network.": "averaged.",
    "ema_network.": "averaged.",
    "denoiser.network.": "raw.",
    "network.": "raw.",
}


def export(checkpoint: str | Path, out: str | Path, averaged_only: bool = False) -> list[str]:
    """Writes a checkpoint's weights and description, whole or not at all; returns which weights.

    Args:
        averaged_only: leave the raw weights out, which further training would begin with.

    Raises:
        ValueError: a checkpoint that is missing, damaged or not one of ours.
    """
    content = read(checkpoint)
    tensors = {}
    for name, tensor in content["state_dict"].items():
        name = plain_name(name)
        part = next((part for part in _PARTS if name.startswith(part)), None)
        if part is None or not isinstance(tensor, Tensor):
            raise UserError(f"checkpoint {checkpoint} holds {name[:80]!r}, which is no weight of a network")
        tensors[_PARTS[part] + name.removeprefix(part)] = tensor
    raw = {name for name in tensors if name.startswith("raw.")}
    if KIND in content[SPEC_KEY] and len(raw) == len(tensors):  # a classifier without averages
        tensors, raw = {name.replace("raw.", "network.", 1): tensor for name, tensor in tensors.items()}, set()
    if averaged_only or all(_equal(tensors[n], tensors.get("averaged." + n.removeprefix("raw."))) for n in raw):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in raw}
    about = {SPEC_KEY: content[SPEC_KEY], IMAGES_KEY: content.get(IMAGES_KEY, 0)}
    about |= {CLASSES_KEY: content[CLASSES_KEY]} if CLASSES_KEY in content else {}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(out) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as of any file; safetensors keeps others from reading its own
        save_file(whole, temporary, metadata={"format": "pt", "ersde_lit": json.dumps(about)})
        temporary.chmod(mode)
    return sorted({name.partition(".")[0] for name in tensors})


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one, other)


def read_safetensors(path: str | Path) -> ImportedModel | ImportedClassifier:
    """What `export` wrote.

    Raises:
        ValueError: in one line, a file that is damaged, hostile or of something else.
    """
    metadata, tensors = read_tensors(path)
    if "ersde_lit" not in metadata:
        raise UserError(f"{path} does not say what its weights are of: `python -m ersde_lit export` did not write it")
    try:
        about = json.loads(metadata["ersde_lit"])
        spec, images = about[SPEC_KEY], about[IMAGES_KEY]
        model = _model(spec, int(images), tensors)
        return replace(model, classes=about.get(CLASSES_KEY)) if isinstance(model, ImportedModel) else model
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} says what cannot be read of its weights: {str(error)[:120]}") from None


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file; raises ValueError where it is damaged, or its header lies."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {' '.join(str(error).split())[:120]}") from None


def _model(spec: dict[str, Any], images: int, tensors: dict[str, Tensor]) -> ImportedModel | ImportedClassifier:
    parts: dict[str, dict[str, Tensor]] = {"averaged": {}, "raw": {}, "network": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise UserError(f"it has a tensor {name[:80]!r}, which is no weight of a network")
        parts[part][rest] = tensor
    raw = parts["raw"] or None
    if set(spec) == {KIND}:
        if parts["network"] and (parts["averaged"] or raw):
            raise UserError("it describes a classifier, and has weights of a denoiser")
        settings, weights = dict(spec[KIND]), parts["averaged"] or parts["network"]
        return ImportedClassifier("ersde_lit's classifier", settings.pop("network"), settings, weights, raw=raw)
    if parts["network"]:
        raise UserError("it describes a denoiser, and has weights of a classifier")
    settings = dict(spec)
    network = settings.pop("network")
    return ImportedModel("ersde_lit's model", network, settings, parts["averaged"], raw, images)
