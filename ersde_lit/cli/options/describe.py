"""Description of images from a checkpoint, the same for `sample` and for a cell of `evaluate`."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.sampling.seeds import format_seeds


def describe(
    seeds: Sequence[int],
    sampler: Mapping[str, Any],
    num_classes: int,
    labels: str | None,
    guidance: GuidanceOptions,
    machine: MachineOptions,
    paths: Mapping[str, str],
    checkpoints: Mapping[str, str],
    **layout: Any,
) -> dict[str, Any]:
    """Plain data, as `sampling.description` has it, of images sampled with these options.

    Args:
        sampler: how, as `SamplerOptions.sampler` names it, with the number of calls.
        paths: the checkpoints, by the option that names them; `checkpoints`: their SHA-256 (`digests`).
        layout: how the images lie in their file, where not as usual.
    """
    of_labels = {"labels": labels or "random"} if num_classes else {}
    return {
        "seeds": format_seeds(seeds),
        "options": {**sampler, **guidance.named(), **of_labels, **machine.named(), **layout},
        "checkpoints": dict(checkpoints),
        "paths": dict(paths),
        "versions": {name: metadata.version(name) for name in ("ersde-lit", "torch")},
    }


def digests(paths: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each file."""
    found = {}
    for name, path in paths.items():
        with open(path, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
