"""Renamed class paths and options, so that configurations, checkpoints, samples and cells with the old ones load."""

from collections.abc import Mapping
from typing import Any

CLASSES = {
    "ersde_lit.evaluation.FIDCallback": "ersde_lit.callbacks.FIDCallback",
    "ersde_lit.evaluation.Classifier": "ersde_lit.metrics.Classifier",
    "ersde_lit.evaluation.Inception": "ersde_lit.metrics.Inception",
    "ersde_lit.interop.diffusers_unet.DiffusersUNet": "ersde_lit.interop.weights.diffusers_unet.DiffusersUNet",
    "ersde_lit.interop.diffusers_unet.DiffusersScoreUNet": (
        "ersde_lit.interop.weights.diffusers_unet.DiffusersScoreUNet"
    ),
    "ersde_lit.networks.Encoder": "ersde_lit.networks.ClassifierEncoder",
    "ersde_lit.networks.encoder.Encoder": "ersde_lit.networks.encoder.ClassifierEncoder",
    "ersde_lit.networks.DhariwalEncoder": "ersde_lit.networks.DhariwalClassifierEncoder",
    "ersde_lit.networks.dhariwal_encoder.DhariwalEncoder": (
        "ersde_lit.networks.dhariwal_encoder.DhariwalClassifierEncoder"
    ),
    "ersde_lit.training.optimizer.AdamW": "ersde_lit.training.optimizer.AdamWConfig",
}
OPTIONS = {"lam_min": "sigma_min", "lam_max": "sigma_max"}  # of `sample`, `evaluate` and `analyze`


def current(value: Any) -> Any:
    """Plain data with each renamed class path replaced."""
    if isinstance(value, dict):
        return {key: current(item) for key, item in value.items()}
    if isinstance(value, list):
        return [current(item) for item in value]
    return CLASSES.get(value, value) if isinstance(value, str) else value


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `sample` by today's names."""
    return {OPTIONS.get(name, name): current(value) for name, value in options.items()}


def hint(text: str) -> str:
    """Says for each old option in a parser's message what it is called now."""
    found = [("--" if f"--{old}" in text else "", old, new) for old, new in OPTIONS.items() if old in text]
    return "".join(f" ({dashes}{old} is {dashes}{new} now)" for dashes, old, new in found)
