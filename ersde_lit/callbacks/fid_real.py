"""Measurement of the real images: features, reference statistics and the values of held-out images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ersde_lit.data import ImageDataModule
from ersde_lit.metrics.choice import Choice, features_for
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.nearest import nearest_distances
from ersde_lit.metrics.protocol import size_in_words
from ersde_lit.metrics.reference import KEEP, Reference, read_reference, reference_of
from ersde_lit.metrics.scores import OF_FEATURES, MetricName, Scores
from ersde_lit.ranks import Ranks


class RealImages(NamedTuple):
    """What is known of the real images before any is generated."""

    features: Features
    reference: Reference
    values: dict[str, float]  # of held-out images, by the names they are logged with
    summary: str

    def scores(self, metrics: Sequence[MetricName], ranks: Ranks) -> Scores:
        return Scores(self.features, self.reference, metrics, sync=ranks.count > 1, group=ranks.group)


def measure_real(
    data: ImageDataModule | None,
    choice: Choice | Features,
    metrics: Sequence[MetricName],
    device: torch.device,
    ranks: Ranks,
    weights: str | None,
    reference_file: str | None,
    num_samples: int,
    batch_size: int,
    nearest_images: int,
) -> RealImages:
    """Features, reference and held-out values; to be called by all ranks. Arguments as for `FIDCallback`.

    Args:
        data: the real images; None: only the reference file is known.
    """
    features = None
    with ranks.fail_together():
        if ranks.rank == 0:
            features = features_for(choice, data, weights, device=device).cpu()
    features = ranks.of_first(features)  # the same to the last bit
    keep = KEEP if OF_FEATURES & {*metrics} else 0
    if reference_file is not None:
        reference = read_reference(reference_file, features, device, keep_features=keep, ranks=ranks)
    else:
        assert data is not None
        reference = reference_of(data, features, device, keep_features=keep, ranks=ranks)
    real = RealImages(features, reference, {}, "")
    with ranks.fail_together():
        scores = real.scores(metrics, ranks).to(device)
    size = "" if reference.image_shape is None else f" of {size_in_words(reference.image_shape)}"
    if data is None:
        summary = f"{features.description}; against {reference.description}{size}"
        return real._replace(features=features.cpu(), summary=summary)
    held_out, near = data.split("test").images[:num_samples], ""
    with ranks.fail_together():
        for images in held_out.split(batch_size)[ranks.rank :: ranks.count]:
            scores.update(images.to(device))
    with ranks.fail_together():
        values = {f"{metric}/real": value for metric, value in scores.compute().items()}
    if nearest_images:
        share = held_out[:nearest_images][ranks.rank :: ranks.count].to(device)
        values["nearest/real"] = mean_over_ranks(nearest_distances(share, data.split("train").images), ranks)
        near = f", {values['nearest/real']:.1f} grey levels from the nearest"
    count = "" if reference.num_images is None else f"{reference.num_images} "
    against = f"{count}{'training images' if reference_file is None else 'images of the reference'}{size}"
    value = f"{values[f'{metrics[0]}/real']:.4g}{near}"
    summary = f"{features.description}; {len(held_out)} held-out against {against}: {value}"
    return real._replace(features=features.cpu(), values=values, summary=summary)


def mean_over_ranks(values: Tensor, ranks: Ranks) -> float:
    """The mean over all ranks, of any number of values on each."""
    return torch.cat(ranks.gather(values.double().cpu())).mean().item()
