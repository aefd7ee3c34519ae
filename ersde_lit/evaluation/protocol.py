"""The record of all that changes a number: printed with it, stored beside it, the same for all that is compared."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from ersde_lit.evaluation.fid import Statistics

QUANTISATION = "uint8, floor(127.5 x + 128), clipped"
MAY_DIFFER = {"reference", "versions", "machine"}  # words, and what changes a number by rounding alone
TITLES = {"fid": "FID", "kid": "KID", "is": "Inception Score"}


def title(metric: str) -> str:
    """What people call it."""
    return TITLES.get(metric, metric)


def versions() -> dict[str, str]:
    """Of what measures."""
    return {name: metadata.version(name) for name in ("ersde-lit", "torch", "torchmetrics")}


def machine() -> str:
    """Where it is measured, in a few words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


@dataclass(frozen=True)
class Protocol:
    """How scores are measured; which images they are of is in the description of the images.

    Attributes:
        scores: `Scores.protocol`: features, preprocessing, reference, and a line for each metric.
        statistics: of the reference (`statistics_in_brief`).
        weights: which of the model's made the images; None for images from elsewhere.
        checkpoint: its SHA-256; None for images from elsewhere.
        quantisation: of a model's floats.
    """

    scores: Mapping[str, str]
    statistics: str
    weights: str | None = None
    checkpoint: str | None = None
    quantisation: str = QUANTISATION
    machine: str = field(default_factory=machine)
    versions: Mapping[str, str] = field(default_factory=versions)

    @property
    def plain(self) -> dict[str, Any]:
        """All of it, flat, as plain data."""
        rest = {name: value for name, value in vars(self).items() if name not in ("scores", "versions")}
        return {**self.scores, **rest, "versions": dict(self.versions)}

    def differences(self, kept: Mapping[str, Any]) -> str:
        """In what a protocol that was kept makes other numbers than this one, in a few words; empty if in nothing."""
        own = self.plain
        common = [name for name in own if name not in MAY_DIFFER and name in kept]  # metrics may be added
        differing = [name for name in common if kept[name] != own[name]]
        return ", ".join(f"{name} ({_short(kept[name])} there, {_short(own[name])} here)" for name in differing)

    def __str__(self) -> str:
        """In sentences, for below a table."""
        scores = dict(self.scores)
        features, preprocessing = scores.pop("features"), scores.pop("preprocessing")
        scores.pop("fingerprint")
        parts = [f"Reference: {scores.pop('reference')}", f"{features}; images are read {preprocessing}"]
        parts += [f"{title(name)}: {how}" for name, how in scores.items()]
        if self.weights is not None:
            parts += [f"{self.weights}, images {self.quantisation}"]
        tools = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in [*parts, f"{self.machine}, {tools}"])


def statistics_in_brief(statistics: Statistics) -> str:
    """Tells statistics from others, but not from those of another machine, which differ by rounding."""
    count = "" if statistics.num_images is None else f"{statistics.num_images} images, "
    return f"{count}|mu| {statistics.mean.norm():.5g}, tr sigma {statistics.cov.trace():.5g}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
