"""Measurement for the FID callback: features, reference statistics, and metrics of real and sampled images."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ersde_lit.data import ImageDataModule
from ersde_lit.denoisers import Denoiser
from ersde_lit.metrics.choice import Choice, features_for
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.nearest import nearest_distances
from ersde_lit.metrics.reference import KEEP, Reference, read_reference, reference_of
from ersde_lit.metrics.scores import OF_FEATURES, MetricName, Scores
from ersde_lit.ranks import Ranks
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import Sampler

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class RealImages(NamedTuple):
    """Features, reference statistics, and metrics of held-out real images."""

    features: Features
    reference: Reference
    values: dict[str, float]  # of held-out images, by the names they are logged with

    def scores(self, metrics: Sequence[MetricName], ranks: Ranks) -> Scores:
        return Scores(self.features, self.reference, metrics, sync=ranks.count > 1, group=ranks.group)


def features_and_reference(
    choice: Choice | Features, data: ImageDataModule | None, weights: str | None, reference_file: str | None,
    metrics: Sequence[MetricName], device: torch.device, ranks: Ranks, exif: Literal["apply", "ignore"] = "apply",
) -> tuple[Features, Reference]:  # fmt: skip
    """Prepares the features on the first rank and measures the reference on all; to be called by all ranks."""
    features = None
    with ranks.fail_together():
        if ranks.rank == 0:
            features = features_for(choice, data, weights, device=device).cpu()
    features = ranks.of_first(features)  # the same to the last bit
    given: Any = {"keep_features": KEEP if OF_FEATURES & {*metrics} else 0, "ranks": ranks}
    if reference_file is not None:
        return features, read_reference(reference_file, features, device, exif=exif, **given)
    assert data is not None
    return features, reference_of(data, features, device, **given)


def precision_of(trainer: Trainer) -> str:
    """Precision of the network while it is sampled: that of training, by autocast, as averages are float32."""
    return {"bf16": "bf16", "16": "fp16", "64": "fp64"}.get(str(trainer.precision).partition("-")[0], "fp32")


def sample_images(
    trainer: Trainer, denoiser: Denoiser, sampler: Sampler, seeds: Sequence[int], nfe: int, batch_size: int,
    labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Samples images, uint8 [B, C, H, W]; raises FloatingPointError where one is not finite."""
    dtype = DTYPES.get(precision_of(trainer), torch.float32)
    with torch.autocast(trainer.strategy.root_device.type, dtype, enabled=dtype != torch.float32):
        made = generate(denoiser, sampler, seeds, nfe, labels, batch_size=batch_size)
        return torch.cat([quantise(block.images) for block in made])


def measure(
    blocks: Iterable[tuple[Tensor, int]], scores: Scores, train_images: Tensor | None, ranks: Ranks
) -> tuple[dict[str, float], str]:
    """Computes metrics over all ranks by name, and why they are NaN where a sample is not finite, else "".

    Args:
        blocks: this rank's images, uint8, and for how many of each block the nearest training image is sought.
        train_images: where it is sought; None: nowhere, and "nearest" is not among the metrics.
    """
    failure, nearest = "", torch.empty(0, device=scores.moments.device)
    scores.reset()
    with ranks.fail_together():
        try:
            for images, leading in blocks:
                scores.update(images)
                if leading and train_images is not None:
                    nearest = torch.cat([nearest, nearest_distances(images[:leading], train_images)])
        except FloatingPointError as error:
            failure = str(error)
    failure = next(filter(None, ranks.gather(failure)), "")
    if failure:
        names = scores.metrics if train_images is None else (*scores.metrics, "nearest")
        return dict.fromkeys(names, math.nan), failure
    with ranks.fail_together():
        values = scores.compute()
    if train_images is not None:
        values["nearest"] = torch.cat(ranks.gather(nearest.double().cpu())).mean().item()
    return values, ""
