"""Protocol: record of everything that affects a score; printed and stored with it, equal for comparable scores."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from ersde_lit.errors import in_short
from ersde_lit.metrics.frechet import Statistics

ARITHMETIC = "features without autocast and TF32"
QUANTISATION = "uint8, floor(127.5 x + 128), clipped"
MAY_DIFFER = {"reference", "reference_size", "versions", "machine"}  # words, and what changes rounding alone
TITLES = {"fid": "FID", "kid": "KID", "is": "Inception Score"}


def title(metric: str) -> str:
    """Name of a metric in tables."""
    return TITLES.get(metric, metric)


def versions() -> dict[str, str]:
    """Versions of the packages that measure."""
    return {name: metadata.version(name) for name in ("ersde-lit", "torch", "torchmetrics")}


def machine() -> str:
    """Description of this machine."""
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
        precision: of its network's arithmetic; None: unknown.
        labels, guidance: of a model's images; None for images from elsewhere, and of models without classes.
        arithmetic: of what measures.
    """

    scores: Mapping[str, str]
    statistics: str
    weights: str | None = None
    checkpoint: str | None = None
    quantisation: str = QUANTISATION
    precision: str | None = None
    labels: str | None = None
    guidance: str | None = None
    arithmetic: str = ARITHMETIC
    machine: str = field(default_factory=machine)
    versions: Mapping[str, str] = field(default_factory=versions)

    @property
    def plain(self) -> dict[str, Any]:
        """The protocol as flat plain data."""
        rest = {name: value for name, value in vars(self).items() if name not in ("scores", "versions")}
        return {**self.scores, **rest, "versions": dict(self.versions)}

    def differences(self, kept: Mapping[str, Any]) -> str:
        """Differences of a stored protocol that change the numbers, in words; empty if there are none."""
        own = self.plain
        common = [name for name in own if name not in MAY_DIFFER and name in kept]  # others may be added
        differing = [name for name in common if kept[name] != own[name]]
        return ", ".join(f"{name} ({in_short(kept[name])} there, {in_short(own[name])} here)" for name in differing)

    def __str__(self) -> str:
        """Sentences to print below a table."""
        scores = dict(self.scores)
        features, preprocessing = scores.pop("features"), scores.pop("preprocessing")
        scores.pop("fingerprint")
        size = f" ({scores.pop('reference_size')})" if "reference_size" in scores else ""
        parts = [f"Reference: {scores.pop('reference')}{size}", f"{features}; images are read {preprocessing}"]
        parts += [self.arithmetic, *(f"{title(name)}: {how}" for name, how in scores.items())]
        if self.weights is not None:
            how = "" if self.precision is None else f" sampled in {self.precision},"
            parts += [f"{self.weights}, images{how} {self.quantisation}"]
        parts += [f"{name}: {value}" for name in ("labels", "guidance") if (value := getattr(self, name)) is not None]
        tools = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in [*parts, f"{self.machine}, {tools}"])


def statistics_in_brief(statistics: Statistics) -> str:
    """Summary that differs between statistics, but not between machines, which differ by rounding."""
    count = "" if statistics.num_images is None else f"{statistics.num_images} images, "
    return f"{count}|mu| {statistics.mean.norm():.5g}, tr sigma {statistics.cov.trace():.5g}"


def size_in_words(image_shape: Sequence[int]) -> str:
    """Image size (C, H, W) in words."""
    channels, height, width = image_shape
    return f"{height}x{width}, {channels} channel{'s' if channels > 1 else ''}"


def sizes_differ(image_shape: Sequence[int], of_reference: Sequence[int] | None) -> str:
    """Warning that names both sizes; empty where they are the same or that of the reference is unknown."""
    if of_reference is None or tuple(image_shape) == tuple(of_reference):
        return ""
    return (
        f"images are {size_in_words(image_shape)}, and those of the reference {size_in_words(of_reference)}: the "
        "distance is one of sizes too; make them alike first"
    )
