"""Format for publishing: weights in safetensors, with the spec of their model as JSON in the metadata.

Tensors are named `averaged.NAME` and, where they differ, `raw.NAME`, by the names of the network's state dict, which
are preceded by `uncertainty.` for a learned uncertainty; the averages of a noisy classifier `network.NAME`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.files import replacing
from ersde_lit.interop.weights.model import UNCERTAINTY, ImportedClassifier, ImportedModel
from ersde_lit.solvers import SavedTables
from ersde_lit.training.averaged import IMAGES_KEY, POWER_EMA_KEY, SPEC_KEY
from ersde_lit.training.checkpoint import carrying, read
from ersde_lit.training.classes import CLASSES_KEY
from ersde_lit.training.module import TABLES_KEY
from ersde_lit.training.noisy_classifier import KIND
from ersde_lit.training.weights import plain_name

_PARTS = {
    f"{prefix}denoiser.{ours}": f"{part}.{name}"
    for prefix, part in (("ema_", "averaged"), ("", "raw"))
    for ours, name in (("network.", ""), (UNCERTAINTY, UNCERTAINTY))
}


def export(
    checkpoint: str | Path, out: str | Path, averaged_only: bool = False, tables: SavedTables | None = None
) -> list[str]:
    """Writes a checkpoint's weights and spec atomically; returns the parts written.

    Args:
        averaged_only: omit the raw weights, from which further training would start.
        tables: to sample with by default; None: those that the checkpoint carries.
    """
    content = carrying(checkpoint, tables) if tables is not None else read(checkpoint)
    return write_safetensors(content, out, f"checkpoint {checkpoint}", averaged_only)


def write_safetensors(content: Mapping[str, Any], out: str | Path, name: str, averaged_only: bool = False) -> list[str]:
    """As `export`, of the content of a checkpoint, called `name` in errors."""
    weights = {plain_name(weight): tensor for weight, tensor in content["state_dict"].items()}
    parts = _PARTS
    if KIND in content[SPEC_KEY]:
        average = {weight: tensor for weight, tensor in weights.items() if weight.startswith("ema_network.")}
        weights, parts = average or weights, {"ema_network.": "network.", "network.": "network."}
    tensors = {}
    for weight, tensor in weights.items():
        part = next((part for part in parts if weight.startswith(part)), None)
        if part is None:
            raise UserError(f"{name} holds {weight[:80]!r}, which is no weight of a network")
        tensors[parts[part] + weight.removeprefix(part)] = tensor
    raw = {name: tensor for name, tensor in tensors.items() if name.startswith("raw.")}
    if averaged_only or all(_equal(t, tensors.get(n.replace("raw.", "averaged.", 1))) for n, t in raw.items()):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in raw}
    about = {SPEC_KEY: content[SPEC_KEY], IMAGES_KEY: content.get(IMAGES_KEY, 0)}
    about |= {key: content[key] for key in (CLASSES_KEY, TABLES_KEY, POWER_EMA_KEY) if key in content}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(out) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the default mode; safetensors' own keeps others from reading
        save_file(contiguous, temporary, metadata={"format": "pt", "ersde_lit": json.dumps(about)})
        temporary.chmod(mode)
    return sorted({name.partition(".")[0] for name in tensors})


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one, other)


def read_safetensors(path: str | Path) -> ImportedModel | ImportedClassifier:
    """The model in a file of `export`; UserError if it is damaged, hostile or of something else."""
    metadata, tensors = read_tensors(path)
    if "ersde_lit" not in metadata:
        raise UserError(f"{path} has no description of its weights: it was not written by `python -m ersde_lit export`")
    try:
        about = json.loads(metadata["ersde_lit"])
        spec, images = about[SPEC_KEY], about[IMAGES_KEY]
        model = _model(spec, int(images), tensors)
        kept = {"classes": about.get(CLASSES_KEY), "tables": about.get(TABLES_KEY)}
        if (average := about.get(POWER_EMA_KEY)) is not None:
            kept["power_ema"] = {"sigma_rel": float(average["sigma_rel"]), "images": int(average["images"])}
        return replace(model, **kept) if isinstance(model, ImportedModel) else model
    except UserError:
        raise
    except (RecursionError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} has a description that cannot be read: {str(error)[:120]}") from None


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file; UserError if it is damaged or its header is false."""
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
    if set(spec) == {KIND}:
        if parts["averaged"] or parts["raw"]:
            raise UserError("it describes a classifier, and has weights of a denoiser")
        settings = dict(spec[KIND])
        return ImportedClassifier("ersde_lit's classifier", settings.pop("network"), settings, parts["network"])
    if parts["network"]:
        raise UserError("it describes a denoiser, and has weights of a classifier")
    settings = dict(spec)
    network = settings.pop("network")
    return ImportedModel("ersde_lit's model", network, settings, parts["averaged"], parts["raw"] or None, images)
