"""Imported models: checked against their description on the meta device, and written as checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.interop.weights.published import published
from ersde_lit.networks import Network
from ersde_lit.solvers import SavedTables
from ersde_lit.training import AtomicCheckpointIO, DiffusionModule, NoisyClassifier
from ersde_lit.training.averaged import IMAGES_KEY, POWER_EMA_KEY, SPEC_KEY
from ersde_lit.training.classes import CLASSES_KEY, Classes
from ersde_lit.training.module import TABLES_KEY
from ersde_lit.training.noisy_classifier import KIND
from ersde_lit.training.spec import Spec, at_most, build, with_defaults
from ersde_lit.training.weights import compare

Weights = Mapping[str, Tensor]
UNCERTAINTY = "uncertainty."  # begins the names of weights that are not the network's but of `Denoiser.uncertainty`
_START = {  # of a training, without the state of an optimiser
    "pytorch-lightning_version": lightning.__version__,
    "epoch": 0,
    "global_step": 0,
    "optimizer_states": [],
    "lr_schedulers": [],
}


@dataclass(frozen=True)
class ImportedModel:
    """Weights of a denoiser, and the description of its `DiffusionModule`.

    Attributes:
        origin: source for the report, as in "EDM snapshot, EDMPrecond of a SongUNet".
        network: spec of the network (`ersde_lit.training.spec`).
        settings: the other arguments of `DiffusionModule`, as specs or values.
        averaged: EMA weights by the names of the network's state dict, with a learned uncertainty's (`UNCERTAINTY`).
        raw: weights that are not averaged; None if unknown, then the averaged ones are used.
        images_seen: images of the training so far, from which further training counts on.
        notes: further lines for the report.
        classes: trained classes and their names, as a checkpoint keeps them; None if unknown.
        tables: learned tables to sample with, as plain data; None: none.
        power_ema: sigma_rel and images of a power-function average; None: the weights are another one, or unknown.
    """

    origin: str
    network: Spec
    settings: dict[str, Any]
    averaged: Weights
    raw: Weights | None = None
    images_seen: int = 0
    notes: list[str] = field(default_factory=list)
    classes: dict[str, Any] | None = None
    tables: dict[str, Any] | None = None
    power_ema: dict[str, Any] | None = None

    def module(self) -> DiffusionModule:
        """The model on the meta device; UserError if weights and description do not match or weights are not finite."""
        given = [self.averaged] if self.raw is None else [self.averaged, self.raw]
        network = checked_network(self.network, *map(_of_network, given))
        try:
            module = DiffusionModule(network, **{name: build(value) for name, value in self.settings.items()})
        except (TypeError, AttributeError) as error:
            raise UserError(f"its description makes no model: {str(error)[:120]}") from None
        for weights in given:
            uncertainty = {n.removeprefix(UNCERTAINTY): w for n, w in weights.items() if n.startswith(UNCERTAINTY)}
            _check_finite(uncertainty)
            compare(uncertainty, module.denoiser.uncertainty or nn.Module())
        return module

    def checkpoint(self, module: DiffusionModule) -> dict[str, Any]:
        """Checkpoint for `training.load` and `fit --ckpt_path`: raw and averaged weights, without optimiser state."""
        averaged = _stored(self.averaged)
        copies = {"denoiser": averaged if self.raw is None else _stored(self.raw), "ema_denoiser": averaged}
        state = {
            f"{part}.{name}" if name.startswith(UNCERTAINTY) else f"{part}.network.{name}": tensor
            for part, weights in copies.items()
            for name, tensor in weights.items()
        }
        classes = {CLASSES_KEY: Classes.read(self.classes, module.num_classes).plain()} if self.classes else {}
        tables = {TABLES_KEY: SavedTables.of_plain(self.tables).plain()} if self.tables else {}
        average = {POWER_EMA_KEY: self.power_ema} if self.power_ema else {}
        kept = classes | tables | average
        return {"state_dict": state, SPEC_KEY: module.spec, IMAGES_KEY: self.images_seen, **kept, **_START}

    def report(self, module: DiffusionModule) -> str:
        """Report of what was found, in lines of a word and its value."""
        denoiser = module.denoiser
        levels = f", {len(denoiser.levels)} levels" if denoiser.levels is not None else ""
        what = f"{denoiser.preconditioning}, prediction {denoiser.prediction}, process {_name(denoiser.process)}"
        what += f", noise {denoiser.noise}: it restores images" if module.restores else ""
        lam = f"{denoiser.lam_min:.5g} to {denoiser.lam_max:.5g}{levels}"
        return _lines(self.origin, denoiser.network, len(self.averaged), what, lam, self.notes)


@dataclass(frozen=True)
class ImportedClassifier:
    """Weights of a classifier of noisy images, and the description of its `NoisyClassifier`: as `ImportedModel`."""

    origin: str
    network: Spec
    settings: dict[str, Any]
    weights: Weights
    notes: list[str] = field(default_factory=list)

    def module(self) -> NoisyClassifier:
        network = checked_network(self.network, self.weights)
        return NoisyClassifier(network, **{name: build(value) for name, value in self.settings.items()})

    def checkpoint(self, module: NoisyClassifier) -> dict[str, Any]:
        """Checkpoint for `training.load_classifier`."""
        state = {f"network.{name}": tensor for name, tensor in _stored(self.weights).items()}
        return {"state_dict": state, SPEC_KEY: {KIND: module.spec}, **_START}

    def report(self, module: NoisyClassifier) -> str:
        low, high = module.process.lam_range()
        what = f"{module.preconditioning}, a classifier, process {_name(module.process)}"
        return _lines(self.origin, module.network, len(self.weights), what, f"{low:.5g} to {high:.5g}", self.notes)


def write(model: ImportedModel | ImportedClassifier, out: str | Path) -> str:
    """Writes the checkpoint atomically; returns a report of what was found. Raises UserError as `module`."""
    module: Any = model.module()
    AtomicCheckpointIO().save_checkpoint(model.checkpoint(module), out)
    return model.report(module)


def fit_config(model: ImportedModel) -> str:
    """YAML of the section `model` of a configuration for `fit --ckpt_path`."""
    spec = model.module().spec
    plain = {name: spec[name]["init_args"] for name in ("optimizer", "ema")}
    return yaml.safe_dump({"model": spec | plain}, sort_keys=False)


def _lines(origin: str, network: Network, tensors: int, preconditioning: str, lam: str, notes: Sequence[str]) -> str:
    channels, height, width = network.image_shape
    classes = f"{network.num_classes} classes" if network.num_classes else "no classes"
    count = sum(parameter.numel() for parameter in network.parameters())
    known = f", as published ({name})" if (name := published(network, count)) else ""
    lines = {
        "found": origin,
        "architecture": f"{_name(network)}, {channels}x{height}x{width}, {classes}",
        "preconditioning": preconditioning,
        "parameters": f"{count:,}{known}; all {tensors} tensors used",
        "lam": lam,
    }
    return "\n".join([f"{word:<17}{text}" for word, text in lines.items()] + [f"{'note':<17}{n}" for n in notes])


def _name(value: object) -> str:
    return type(value).__name__


def _stored(weights: Weights) -> Weights:
    """Weights that are contiguous, share no memory with others, and have at least single precision."""
    contiguous = {name: (w.float() if _is_small(w) else w).contiguous() for name, w in weights.items()}
    return {name: w.clone() if w.untyped_storage().nbytes() > w.nbytes else w for name, w in contiguous.items()}


def _is_small(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.itemsize < 4


def checked_network(spec: Spec, *weights: Weights) -> Network:
    """The network on the meta device; UserError if one of the weights does not fit it or is not finite."""
    for each in weights:
        _check_finite(each)
    numbers = sum(tensor.numel() for tensor in weights[0].values())
    with torch.device("meta"), at_most(2 * numbers + 1000):  # some are registered twice
        network = build(spec)
    if not isinstance(network, Network):
        raise UserError("its description is not one of a network")
    network.spec = with_defaults(network.spec, network)  # all of it, for the report and for configurations
    for each in weights:
        compare(each, network)
    return network


def _check_finite(weights: Weights) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not (tensor.float() if _is_small(tensor) else tensor).isfinite().all():
            raise UserError(f"its weight {name[:80]!r} is not finite")


def _of_network(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(UNCERTAINTY)}
