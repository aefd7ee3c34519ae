"""FID, KID, Inception Score, precision and recall of generated images, in one pass over them."""

import warnings
from collections.abc import Sequence
from typing import Literal, Self, get_args

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ersde_lit.errors import UserError
from ersde_lit.metrics.features import Features, check_images, extract
from ersde_lit.metrics.frechet import FrechetDistance, Moments
from ersde_lit.metrics.pooled import with_float64
from ersde_lit.metrics.precision_recall import NEIGHBOURS, precision_recall
from ersde_lit.metrics.protocol import size_in_words, sizes_differ
from ersde_lit.metrics.reference import Reference
from ersde_lit.metrics.reservoir import Sample, image_keys

MetricName = Literal["fid", "kid", "is", "precision", "recall"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
OF_FEATURES = frozenset({"kid", "precision", "recall"})
KEPT = 50_000  # generated images whose features are kept where a metric needs them, as published protocols have
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, as published
SPLITS = 10  # of Inception Score, as published


class Scores:
    """Metrics of uint8 images against a reference.

    Under torch.distributed every rank brings its own images and the same reference; `compute` is called on all ranks,
    also on those without an image, and gives each the values over all images. Values do not depend on the order of
    the images or on who brings them.

    Args:
        features: put in evaluation mode here.
        reference: in these features.
        metrics: which of
            - fid: Frechet distance in these features (FID, where they are Inception's); of all images;
            - kid: kernel distance, the mean of 100 seeded subsets of 1,000 images (of all, where there are fewer);
            - is: Inception Score, the mean of 10 random splits, by the features' own classes;
            - precision, recall: improved precision and recall with 3 neighbours.
        sync: whether `compute` adds up the ranks; False where only some of them call it.
        keep: all but fid are of at most so many images, a random sample of them. FID alone keeps 8 bytes an image.
        group: of torch.distributed, that adds up; None: the default one.

    Raises:
        ValueError: an unknown metric, one that the features or the reference cannot serve, or a reference in other
            features.
    """

    def __init__(
        self,
        features: Features,
        reference: Reference,
        metrics: Sequence[MetricName] = ("fid",),
        sync: bool = True,
        keep: int = KEPT,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        _check(features, reference, metrics)
        self.features, self.reference, self.metrics, self.keep = features.eval(), reference, tuple(metrics), keep
        self.widths = (
            features.num_features if OF_FEATURES & {*metrics} else 0,
            features.num_classes if "is" in metrics else 0,
        )
        self.moments = Moments(features.num_features, sync, group)
        self.sample = Sample(sum(self.widths), keep, sync, group)
        self.distance = FrechetDistance(reference.statistics)
        self.notes: tuple[str, ...] = ()
        self.num_images = 0
        self.image_shape: tuple[int, ...] | None = None

    def to(self, device: torch.device | str) -> Self:
        for part in (self.features, self.moments, self.sample):
            part.to(with_float64(device))
        return self

    def update(self, images: Tensor) -> None:
        """Adds uint8 images [n, C, H, W], n >= 0. Raises ValueError for anything else."""
        check_images(images)
        if len(images):
            self.image_shape = tuple(images.shape[1:])
        for batch in images.split(self.features.batch_size) if len(images) else ():
            batch = batch.to(self.moments.device)
            features, logits = extract(self.features, batch)
            self.moments.update(features)
            kept, classes = self.widths
            rows = features[:, :kept]
            if classes:
                if logits is None or logits.shape != (len(batch), classes):
                    found = None if logits is None else list(logits.shape)
                    raise UserError(f"features_and_logits gave logits {found}, not {[len(batch), classes]}")
                rows = torch.cat([rows, logits], 1)
            self.sample.update(image_keys(batch), rows)

    def compute(self) -> dict[str, float]:
        """The metrics by name, over all images since `reset`.

        Sets `num_images`, over all ranks, and `notes`: what weakens the values, a line each; also given as warnings.
        `image_shape` (C, H, W) is that of this rank's last images.

        Raises:
            ValueError: fewer images than a metric needs, or features that are not finite.
        """
        statistics, drawn = self.moments.over_ranks(), self.sample.over_ranks()
        self.num_images = drawn.num_images
        self.notes = tuple(self._notes(drawn.copies))
        for note in self.notes:
            rank_zero_warn(note)
        features, logits = drawn.rows.to(self.moments.device).split(self.widths, dim=1)
        kept = self.reference.features  # there where a metric needs it: checked at the beginning
        real = features[:0] if kept is None or not self.widths[0] else kept.to(features)
        values: dict[str, float] = {}
        if "fid" in self.metrics:
            values["fid"] = self.distance(statistics)
        if "kid" in self.metrics:
            values["kid"] = kid(features, real)
        if "is" in self.metrics:
            values["is"] = inception_score(logits)
        if {"precision", "recall"} & {*self.metrics}:
            values["precision"], values["recall"] = precision_recall(features, real)
        return {name: values[name] for name in self.metrics}

    def reset(self) -> None:
        self.moments.reset()
        self.sample.reset()
        self.image_shape = None

    @property
    def protocol(self) -> dict[str, str]:
        """Description of everything but the images that affects the values."""
        real = 0 if self.reference.features is None else len(self.reference.features)
        kept = f"of at most {self.keep} images against {real} real ones"
        how = {
            "fid": "of all images, unbiased covariances in float64",
            "kid": f"{SUBSETS} seeded subsets of at most {SUBSET_SIZE}, {kept}",
            "is": f"{SPLITS} splits of at most {self.keep} images",
            "precision": f"{NEIGHBOURS} neighbours, {kept}",
            "recall": f"{NEIGHBOURS} neighbours, {kept}",
        }
        size = self.reference.image_shape
        return {
            "features": self.features.description,
            "preprocessing": self.features.preprocessing,
            "fingerprint": self.features.fingerprint,
            "reference": self.reference.description,
            **({} if size is None else {"reference_size": size_in_words(size)}),
            **{name: how[name] for name in self.metrics},
        }

    def _notes(self, copies: int) -> list[str]:
        notes = []
        if "fid" in self.metrics:
            counts = {"": self.num_images, " of the reference": self.reference.num_images}
            notes = [too_few(n, self.features.num_features, of) for of, n in counts.items() if n is not None]
        if copies:
            notes.append(f"{copies} of {self.num_images} images are copies of others to the byte: was one dealt twice?")
        notes.append(self.reference.copies_in_words)
        if self.image_shape is not None:
            notes.append(sizes_differ(self.image_shape, self.reference.image_shape))
        return [note for note in notes if note]


def too_few(num_images: int, num_features: int, of: str = "") -> str:
    """Warning of a singular covariance, which biases FID; empty where there are more images than features."""
    if num_images > num_features:
        return ""
    return (
        f"{num_images} images{of} for {num_features} features: their covariance is singular and FID is biased upwards; "
        f"compare it with FIDs of as many images only, or take more than {num_features} (published ones are of 50000)"
    )


def kid(generated: Tensor, real: Tensor) -> float:
    """torchmetrics' kernel inception distance of features [n, d] and [m, d]; its subsets are seeded."""
    size = min(len(generated), len(real), SUBSET_SIZE)
    if size < 2:
        raise UserError(f"KID needs two images of each kind, not {len(generated)} generated and {len(real)} real ones")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        metric = KernelInceptionDistance(nn.Identity(), SUBSETS, size, sync_on_compute=False)
        metric.update(real.double(), real=True)
        metric.update(generated.double(), real=False)
        torch.manual_seed(0)
        return metric.compute()[0].item()


def inception_score(logits: Tensor) -> float:
    """torchmetrics' Inception Score of logits [n, classes]; its splits are seeded."""
    if len(logits) < 2 * SPLITS:
        raise UserError(f"Inception Score needs at least {2 * SPLITS} images, two a split, not {len(logits)}")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", "Metric `InceptionScore` will save|std\\(\\)")  # which nobody asks for
        metric = InceptionScore(nn.Identity(), SPLITS, sync_on_compute=False)
        metric.update(logits.double())
        torch.manual_seed(0)
        return metric.compute()[0].item()


def _check(features: Features, reference: Reference, metrics: Sequence[str]) -> None:
    if not metrics:
        raise UserError(f"no metric: choose from {', '.join(METRICS)}")
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"no metric named {name!r}: choose from {', '.join(METRICS)}")
        if name in OF_FEATURES and reference.features is None:
            raise UserError(
                f"{name} needs features of real images, and the reference ({reference.description}) has none"
            )
        if name == "is" and not features.num_classes:
            raise UserError(f"Inception Score needs class probabilities, and {features.description} have none")
    reference.check(features)
