"""Reconstruction of averaged weights of any length from snapshots, after training (Karras et al. 2024, section 3.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.training.averaged import POWER_EMA_KEY, SPEC_KEY
from ersde_lit.training.checkpoint import read
from ersde_lit.training.noisy_classifier import KIND
from ersde_lit.training.power_ema import Profile, combine, gamma_of
from ersde_lit.training.snapshots import STATE_KEY, read_snapshot, snapshot_path

Averages = Mapping[float, Mapping[str, Tensor]]  # by length, then by parameter

WORST = 1e-2  # expected relative error beyond which an average is refused


class Source(NamedTuple):
    """Tracked averages at one moment of training: in a snapshot, or in the last checkpoint."""

    images: int
    path: Path
    averages: Averages | None = None


def reconstruct(run: str | Path, sigma_rel: float, images: int | None = None) -> dict[str, Any]:
    """Reads a run's last checkpoint and replaces its averaged weights by the power-function average of a length.

    Everything else, raw weights and description included, is as it was. Under "power_ema" the checkpoint says what its
    averaged weights are: sigma_rel, gamma, images, the number of snapshots used, and the expected relative error
    (`ersde_lit.training.power_ema.combine`). Snapshots are read one tensor at a time.

    Args:
        run: folder of a run trained with `PowerEMA`.
        sigma_rel: in (0, 0.2887]; lengths near the tracked ones are the most exact.
        images: average as of the snapshot at this many images; None takes the last checkpoint.

    Raises:
        ValueError: no such run, checkpoint or snapshot, a damaged one, sigma_rel out of range or too far from the
            tracked lengths for the snapshots there are.
    """
    gamma = gamma_of(sigma_rel := float(sigma_rel))  # plain numbers, as they go into a checkpoint
    last = Path(run) / "checkpoints" / "last.ckpt"
    checkpoint = read(last)
    tracked = checkpoint.get("callbacks", {}).get(STATE_KEY)
    if not tracked or not tracked["images"]:
        raise UserError(f"{last} has no power-function averages: train with the callback ersde_lit.training.PowerEMA")
    sources = _sources(Path(run), last, tracked, images)
    images, lengths = sources[-1].images, [*tracked["averages"]]
    known = [Profile(gamma_of(length), source.images) for source in sources for length in lengths]
    coefficients, error = combine(known, Profile(gamma, images))
    if error > WORST:
        raise UserError(
            f"{len(sources)} snapshots of {run} give sigma_rel {sigma_rel:.4g} only to {error:.1%}: choose a length "
            f"nearer to {' or '.join(map(str, lengths))}, or train with more snapshots or with that length"
        )
    averages = tracked["averages"][lengths[0]]
    total = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in averages.items()}
    for source, row in zip(sources, coefficients.reshape(len(sources), -1).tolist(), strict=True):
        _add(total, dict(zip(lengths, row, strict=True)), source)
    prefix, weights = "ema_network" if KIND in checkpoint[SPEC_KEY] else "ema_denoiser", checkpoint["state_dict"]
    for name, value in total.items():
        weights[f"{prefix}.{name}"] = value.to(weights[f"{prefix}.{name}"].dtype)
    made = {"sigma_rel": sigma_rel, "gamma": gamma, "images": images, "snapshots": len(sources), "error": error}
    return checkpoint | {POWER_EMA_KEY: made}


def _sources(run: Path, last: Path, tracked: Mapping[str, Any], images: int | None) -> list[Source]:
    """Lists sources up to the one at `images`, in order; snapshots whose files were removed are left out."""
    written = [Source(count, snapshot_path(run, count)) for count in tracked["snapshots"]]
    sources = {source.images: source for source in written if source.path.exists()}
    sources[tracked["images"]] = Source(tracked["images"], last, tracked["averages"])
    if images is None:
        return [*sources.values()]
    if images not in sources:
        nearest = sorted(sorted(sources, key=lambda other: abs(other - images))[:2])
        raise UserError(f"{run} has no snapshot at {images} images; the nearest: {' and '.join(map(str, nearest))}")
    return [source for source in sources.values() if source.images <= images]


def _add(total: dict[str, Tensor], coefficients: Mapping[float, float], source: Source) -> None:
    """total += the sum over lengths of coefficient * average."""
    tensors = read_snapshot(source.path, coefficients, total)
    if source.averages is not None:
        tensors = ((length, name, value) for length, part in source.averages.items() for name, value in part.items())
    for length, name, tensor in tensors:
        if tensor.shape != total[name].shape:
            raise UserError(f"{source.path} is of another network: move it away to use the others alone")
        if not tensor.isfinite().all():
            raise UserError(f"{source.path} holds weights that are not finite: the training has failed by then")
        total[name].add_(tensor, alpha=coefficients[length])
