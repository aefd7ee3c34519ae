"""What FID and its kin see of an image: feature vectors, and class probabilities where the network has them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ersde_lit.data import ImageDataModule
from ersde_lit.errors import UserError
from ersde_lit.metrics.cache import digest
from ersde_lit.tf32 import tf32

Choice = Literal["inception", "classifier", "inception_or_classifier"]


class Features(nn.Module):
    """Base class: uint8 images [n, C, H, W] to features [n, num_features].

    A subclass sets `num_features` and defines `forward`. One that also tells classes apart, as Inception Score needs,
    sets `num_classes` and overrides `features_and_logits`.
    """

    num_features: int
    num_classes: int = 0  # of the logits
    batch_size: int = 500  # images at a time

    @property
    def description(self) -> str:
        """In a few words, what a distance measured in these features depends on: stated wherever one is printed."""
        return type(self).__name__

    @property
    def preprocessing(self) -> str:
        """What is done to the bytes of an image before the first layer, in words."""
        return "by the network itself"

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell these features from others: of class, preprocessing and weights.

        Statistics are cached under it. A class whose code is changed in another way says so in `preprocessing`.
        """
        state = self.state_dict()
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        shapes = [(name, tuple(value.shape)) for name, value in state.items()]
        return digest(repr((kind, self.preprocessing, self.num_features, shapes)), state.values())

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [n, num_features], and [n, classes] whose softmax is the class probabilities, or None."""
        return self(images), None


def features_for(
    choice: Choice | Features,
    data: ImageDataModule | None = None,
    weights: str | Path | None = None,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Features:
    """The features of this name, in evaluation mode.

    Args:
        choice: "inception", as published FIDs are measured with; "classifier", a small network trained on the labels of
            `data`; "inception_or_classifier", the second where Inception's weights are not here and cannot be
            downloaded, with a warning; or features of your own, which come back as they are.
        data: for "classifier".
        weights: file of Inception's weights; None: see `Inception`.
        cache: folder of what was computed or downloaded before; None: `ersde_lit` in $XDG_CACHE_HOME or ~/.cache.
        device: where the classifier is trained, if it is.

    Raises:
        ValueError: weights that are not there or not Inception's, or a data set without labels for "classifier".
    """
    from ersde_lit.metrics.classifier import classifier
    from ersde_lit.metrics.inception import Inception, find_weights

    if choice == "inception_or_classifier" and weights is None:
        try:
            weights = find_weights(cache)
        except ValueError as error:
            rank_zero_warn(f"{error}. Until then features are those of a classifier: compare them with no others")
            return features_for("classifier", data, None, cache, device)
    if choice in ("inception", "inception_or_classifier"):
        return Inception(weights, cache)
    if weights is not None:
        raise UserError("weights are Inception's: choose the features inception, or leave the weights out")
    if isinstance(choice, Features):
        return choice.eval()
    if choice != "classifier":
        raise UserError(f"no features named {choice!r}: choose inception, classifier or a Features of your own")
    if data is None:
        raise UserError("classifier features are trained on the labels of a data set: name one, or choose inception")
    return classifier(data, cache, device=device)


@torch.no_grad()
def extract(features: Features, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features and logits of checked images, where `features` is, in its own precision: without autocast and TF32.

    Raises:
        ValueError: the images are not uint8 [n, C, H, W], or the features not [n, num_features].
    """
    check_images(images)
    with torch.autocast(images.device.type, enabled=False), tf32(False):
        found, logits = features.features_and_logits(images)
    if found.shape != (len(images), features.num_features):
        raise UserError(
            f"{type(features).__name__} gave features {list(found.shape)}, not {[len(images), features.num_features]}"
        )
    return found, logits


def check_images(images: Tensor) -> None:
    """Raises ValueError where these are no images as all metrics here take them."""
    if images.dtype == torch.uint8 and images.dim() == 4:
        return
    nan = ", with NaN among them," if images.is_floating_point() and images.isnan().any() else ""
    raise UserError(
        f"metrics take uint8 images [n, C, H, W], not {images.dtype} {list(images.shape)}{nan}: quantise them"
    )
