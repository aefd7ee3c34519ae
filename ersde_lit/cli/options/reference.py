"""Options of metrics: real data or a reference file, features, names of metrics."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ersde_lit.cli.parser import make, split
from ersde_lit.errors import UserError
from ersde_lit.files import given

if TYPE_CHECKING:
    from ersde_lit.data import ImageDataModule
    from ersde_lit.metrics import Features, Scores
    from ersde_lit.ranks import Ranks


@dataclass(frozen=True)
class ReferenceOptions:
    """How images are measured.

    Args:
        data: real images: a DataModule, as in ersde_lit.data.FashionMNIST:root=data, or a YAML file with `data` in it.
        reference: instead of the data's training images: an .npz of EDM's or ADM's, EDM2's .pkl, or images.
        features: inception, as published FIDs are measured with; dinov2, as published FD-DINOv2; efficientnet, the
            same everywhere and offline; classifier, trained on the data's labels; or a class.
        weights: the file of the features' weights; if not given, Inception's are downloaded, EfficientNet's installed.
        metrics: some of fid,kid,is,precision,recall.
        exif: of image files: apply turns them as their EXIF orientation says; ignore does not, as torchvision.
    """

    data: dict[str, Any] | str | None = None
    reference: str | None = None
    features: dict[str, Any] | str = "inception"
    weights: str | None = None
    metrics: str | list[str] = "fid"
    exif: Literal["apply", "ignore"] = "apply"

    def __post_init__(self) -> None:
        if self.data is None and self.reference is None:
            raise UserError("there is nothing to compare with: give --data or --reference")
        if self.features == "classifier" and self.data is None:
            raise UserError("--features classifier is trained on labelled images: give --data")

    @property
    def names(self) -> list[Any]:
        """Names of the metrics."""
        return list(dict.fromkeys(split(self.metrics)))

    @property
    def files(self) -> dict[str, str]:
        """Paths of the given files, by option."""
        return given(reference=self.reference, weights=self.weights)

    def open_data(self, image_shape: tuple[int, int, int] | None = None) -> "ImageDataModule | None":
        """Makes the DataModule; None without --data. UserError where its images are not of the shape given."""
        from ersde_lit.data import ImageDataModule

        if self.data is None:
            return None
        choice = self.data
        if isinstance(choice, str) and choice.endswith((".yaml", ".yml")):
            choice = _in_yaml(choice)
        data: ImageDataModule = make("data", ImageDataModule, choice)[0]
        if image_shape is not None and tuple(data.image_shape) != image_shape:
            raise UserError(f"the data's images are {tuple(data.image_shape)}, the model's {image_shape}")
        return data

    def open_features(self) -> "str | Features":
        """The features' name, or an object of the user's class; raises UserError for an unknown class or metric."""
        from ersde_lit.metrics import METRICS, Features

        for name in self.names or [""]:
            if name not in METRICS:
                raise UserError(f"no metric named {name!r}: choose from {', '.join(METRICS)}")
        if self.features in ("inception", "dinov2", "efficientnet", "classifier"):
            return str(self.features)
        return make("features", Features, self.features)[0]

    def scores(self, data: "ImageDataModule | None", features: Any, ranks: "Ranks") -> "Scores":
        """Prepares metrics against the reference; to be called by all ranks."""
        from ersde_lit.metrics import Scores
        from ersde_lit.metrics.choice import features_and_reference

        net, real = features_and_reference(features, data, self.weights, self.reference, self.names, ranks, self.exif)
        with ranks.fail_together():
            scores = Scores(net, real, self.names)
        return scores


def _in_yaml(path: str) -> dict[str, Any]:
    """Reads the entry `data` of a configuration."""
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no YAML"
        raise UserError(f"--data {path} cannot be read: {reason}") from None
    found = content.get("data") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"--data {path} has no entry `data` with a class_path")
    return found
