"""Features: base class of the networks whose feature vectors and logits the metrics use."""

import torch
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.metrics.cache import digest
from ersde_lit.tf32 import tf32


class Features(nn.Module):
    """Base class: uint8 images [n, C, H, W] to features [n, num_features].

    A subclass sets `num_features` and defines `forward`. One that also tells classes apart, as Inception Score needs,
    sets `num_classes` and overrides `features_and_logits`.
    """

    num_features: int
    num_classes: int = 0  # of the logits
    batch_size: int = 500  # images at a time
    in_edm2_files: str = "fid"  # name of their statistics in EDM2's reference files
    known_as: str = ""  # class path in the fingerprint, where it is not today's: statistics in caches stay valid

    @property
    def description(self) -> str:
        """Short description, printed with every distance measured in these features."""
        return type(self).__name__

    @property
    def preprocessing(self) -> str:
        """Description of the preprocessing of an image before the first layer."""
        return "by the network itself"

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell these features from others: of class, preprocessing and weights.

        Statistics are cached under it. A class whose code is changed in another way says so in `preprocessing`.
        """
        state = self.state_dict()
        kind = self.known_as or f"{type(self).__module__}.{type(self).__qualname__}"
        shapes = [(name, tuple(value.shape)) for name, value in state.items()]
        return digest(repr((kind, self.preprocessing, self.num_features, shapes)), state.values())

    def check_channels(self, images: Tensor) -> None:
        """Raises UserError unless these are grey or RGB images [n, C, H, W]."""
        if images.shape[1] not in (1, 3):
            raise UserError(f"{type(self).__name__} reads images of 1 or 3 channels, not {images.shape[1]}")

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [n, num_features], and [n, classes] whose softmax is the class probabilities, or None."""
        return self(images), None


@torch.no_grad()
def extract(features: Features, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features and logits of checked images, where `features` is, in its own precision: without autocast and TF32."""
    check_images(images)
    with torch.autocast(images.device.type, enabled=False), tf32(False):
        found, logits = features.features_and_logits(images)
    if found.shape != (len(images), features.num_features):
        raise UserError(
            f"{type(features).__name__} gave features {list(found.shape)}, not {[len(images), features.num_features]}"
        )
    return found, logits


def check_images(images: Tensor) -> None:
    """Raises UserError if these are not uint8 images [n, C, H, W]."""
    if images.dtype == torch.uint8 and images.dim() == 4:
        return
    nan = ", with NaN among them," if images.is_floating_point() and images.isnan().any() else ""
    raise UserError(
        f"metrics take uint8 images [n, C, H, W], not {images.dtype} {list(images.shape)}{nan}: quantise them"
    )
