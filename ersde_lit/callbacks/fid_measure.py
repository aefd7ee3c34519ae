"""Measurement for the FID callback: metrics of real and sampled images over all ranks."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ersde_lit.callbacks.validation import autocast
from ersde_lit.denoisers import Denoiser
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.nearest import nearest_distances
from ersde_lit.metrics.protocol import size_in_words
from ersde_lit.metrics.reference import Reference
from ersde_lit.metrics.scores import MetricName, Scores
from ersde_lit.ranks import Ranks
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import Sampler


class RealImages(NamedTuple):
    """Features, reference statistics, and metrics of held-out real images."""

    features: Features
    reference: Reference
    values: dict[str, float]  # of held-out images, by the names they are logged with
    held_out: int = 0  # their number

    @property
    def description(self) -> str:
        """Words on the reference and the features."""
        shape = self.reference.image_shape
        size = "" if shape is None else f" of {size_in_words(shape)}"
        return f"{self.reference.description}{size}; {self.features.description}"

    def scores(self, metrics: Sequence[MetricName], ranks: Ranks) -> Scores:
        return Scores(self.features, self.reference, metrics, sync=ranks.count > 1, group=ranks.group)


def sample_images(
    trainer: Trainer, denoiser: Denoiser, sampler: Sampler, seeds: Sequence[int], nfe: int, batch_size: int,
    labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Samples images, uint8 [B, C, H, W]; raises FloatingPointError where one is not finite."""
    with autocast(trainer):
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
        values["nearest"] = torch.cat(ranks.gather(nearest.cpu().double())).mean().item()
    return values, ""
