"""Reference statistics of real images: computed, cached, read and written."""

import mmap
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ersde_lit.data import ImageDataModule
from ersde_lit.data.decode import Exif
from ersde_lit.data.npz import array_names, load_array
from ersde_lit.errors import UserError
from ersde_lit.files import replacing
from ersde_lit.metrics.cache import cache_folder, digest_of
from ersde_lit.metrics.features import Features, extract
from ersde_lit.metrics.frechet import Moments, Statistics
from ersde_lit.metrics.image_files import ImageFiles, image_files
from ersde_lit.metrics.pooled import with_float64
from ersde_lit.metrics.reservoir import Sample, image_keys
from ersde_lit.ranks import Ranks
from ersde_lit.untrusted.pickled_tensors import ARRAYS, array
from ersde_lit.untrusted.restricted_pickle import Refused, read_pickle

ALONE = Ranks()
KEEP = 10_000  # images whose features are kept for KID, precision and recall, as ADM's reference batches have
OURS = ("mu", "sigma", "num_images", "description", "fingerprint", "features", "image_shape", "copies")
VERSION = 2  # of the cache: raise it when the code below changes what comes out


@dataclass(frozen=True)
class Reference:
    """Statistics of real images, with features of some of them for the metrics that need them.

    Attributes:
        statistics: of all images.
        description: whose they are.
        features: float32 [k, num_features], a random sample; None: none were kept or given.
        fingerprint: of the features it is in; None: unknown, for it was read from a file of others.
        image_shape: (C, H, W) of the images; None: unknown.
        copies: how many of them are, to the byte, the same as another; 0: none, or unknown.
    """

    statistics: Statistics
    description: str
    features: Tensor | None = None
    fingerprint: str | None = None
    image_shape: tuple[int, int, int] | None = None
    copies: int = 0

    @property
    def copies_in_words(self) -> str:
        """Warning of duplicate images; empty without any."""
        count = f"{self.copies} of {self.num_images} images of the reference"
        return f"{count} are copies of others to the byte, and count twice" if self.copies else ""

    @property
    def num_images(self) -> int | None:
        """None where the file did not say."""
        return self.statistics.num_images

    def check(self, features: Features) -> None:
        """Raises ValueError where this is a reference in other features."""
        d = len(self.statistics.mean)
        if d != features.num_features:
            raise UserError(
                f"the reference ({self.description}) has {d} features, and {features.description} are "
                f"{features.num_features}: take a reference in these, or the features of that"
            )
        if self.fingerprint not in (None, features.fingerprint):
            raise UserError(
                f"the reference ({self.description}) was taken in other features than {features.description}"
            )


def reference_of(
    source: ImageDataModule | ImageFiles,
    features: Features,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
    keep_features: int = KEEP,
    advance: Callable[[int], None] = lambda count: None,
    ranks: Ranks = ALONE,
) -> Reference:
    """Reference of the training images of a data set, or of images on disk; computed once, then cached.

    The name in the cache hashes the images and the features' fingerprint, so it never serves others. Images are
    visited twice, for the hash and for the features; of a converted folder the checksums are hashed instead.

    Args:
        features: moved to `device` and put in evaluation mode.
        cache: folder; None: `ersde_lit` in $XDG_CACHE_HOME or ~/.cache. Not used if it cannot be written.
        keep_features: of at most so many images, for KID, precision and recall.
        advance: is told how many more images have been measured, by this rank.
        ranks: who takes part, each with the same `source` and `features`; all get the same.

    Raises:
        ValueError: fewer than two images, images that the features do not read, or what `source` raises.
    """
    name = source.description
    path, found = Path(), None
    with ranks.fail_together():
        if ranks.rank == 0:
            text = repr((VERSION, features.fingerprint, keep_features, tuple(source.image_shape)))
            path = cache_folder(cache) / f"reference-{digest_of(source, text, source.batches(features.batch_size))}.npz"
            with suppress(ValueError):  # absent or damaged
                found = _read(path)
    if (found := ranks.of_first(found)) is not None:
        return replace(found, description=f"{found.num_images:,} {name}", fingerprint=features.fingerprint)
    batches = source.batches(features.batch_size, ranks.rank, ranks.count)
    reference = _measure(batches, features, device, keep_features, name, advance, ranks)
    reference = replace(reference, image_shape=source.image_shape)
    with suppress(OSError):
        if ranks.rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_reference(reference, path)
    return reference


def _measure(
    batches: Iterable[Tensor],
    features: Features,
    device: torch.device | str,
    keep: int,
    name: str,
    advance: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> Reference:
    device = with_float64(device)
    features, sync = features.to(device).eval(), ranks.count > 1
    moments = Moments(features.num_features, sync, ranks.group).to(device)
    sample = Sample(features.num_features if keep else 0, keep, sync, ranks.group).to(device)
    with ranks.fail_together():
        for images in batches:
            images = images.to(device)
            found, _ = extract(features, images)
            moments.update(found)
            sample.update(image_keys(images), found[:, : sample.width])
            advance(len(images))
    with ranks.fail_together():
        (mean, cov, count), drawn = moments.over_ranks(), sample.over_ranks()
    statistics, kept = Statistics(mean.cpu(), cov.cpu(), count), drawn.rows.cpu() if keep else None
    return Reference(statistics, f"{count:,} {name}", kept, features.fingerprint, copies=drawn.copies)


def read_reference(
    path: str | Path,
    features: Features,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
    keep_features: int = KEEP,
    ranks: Ranks = ALONE,
    exif: Exif = "apply",
) -> Reference:
    """Reference from a file or folder: statistics of this package, EDM or EDM2, ADM's batch, or images of any form.

    An `.npz` with `mu` and `sigma` is read as it is, by EDM's and by ADM's conventions: sigma is the unbiased
    covariance. Where it also has images, `arr_0`, features for KID, precision and recall are computed from them.
    EDM2's `.pkl` is read for what it has of these features (`Features.in_edm2_files`). Anything else is images, as for
    `image_files`, which also says what `exif` is. To be called by all `ranks`, which share the work.

    Raises:
        ValueError: nothing is there, it is damaged or contradicts itself, or is in other features.
    """
    with ranks.fail_together():
        found, images = _open(Path(path).expanduser(), features, exif)
    if images is None or (found and (found.features is not None or not keep_features)):
        assert found is not None  # one of the two is there
        return found
    of_images = reference_of(images, features, device, cache, keep_features, ranks=ranks)
    return replace(found, features=of_images.features) if found else of_images


def _open(path: Path, features: Features, exif: Exif) -> tuple[Reference | None, ImageFiles | None]:
    """The statistics at `path`, and the images; an ADM batch has both."""
    ending = path.suffix.lower()
    names = array_names(path) if ending == ".npz" else OURS if ending == ".pkl" else ["arr_0"]
    if not {"mu", "sigma", "arr_0"} & {*names}:
        raise UserError(f"{path} has neither statistics, mu and sigma, nor images, arr_0")
    images = image_files(path, exif=exif) if "arr_0" in names else None
    if not {"mu", "sigma"} & {*names}:
        return None, images
    found = _read(path, features.in_edm2_files)
    found.check(features)
    return replace(found, image_shape=images.image_shape) if images else found, images


def write_reference(reference: Reference, path: str | Path) -> None:
    """Writes statistics as an `.npz` in EDM's format, `mu` and `sigma`, with further arrays of this package."""
    names = ("description", "num_images", "fingerprint", "features", "image_shape")
    more: dict[str, Any] = {name: value for name in names if (value := getattr(reference, name)) is not None}
    if reference.copies:
        more["copies"] = reference.copies
    mean, cov, _ = reference.statistics
    with replacing(path, concurrent=True) as partial, partial.open("wb") as file:
        np.savez(file, mu=mean.numpy(), sigma=cov.numpy(), **more)


def _read(path: Path, metric: str = "fid") -> Reference:
    if path.suffix.lower() == ".pkl":
        found = read_statistics(path, metric)
    else:
        there = array_names(path)
        found = {name: load_array(path, name) for name in OURS if name in there}
    if not {"mu", "sigma"} <= set(found):
        raise UserError(f"{path} has no mu and sigma")
    for name in ("mu", "sigma", "features"):
        if name in found and found[name].dtype.kind not in "fiu":
            raise UserError(f"{path}: {name} is {found[name].dtype}, not numbers")
    mean, cov = (torch.from_numpy(np.array(found[name], np.float64)) for name in ("mu", "sigma"))
    features = torch.from_numpy(np.array(found["features"], np.float32)) if "features" in found else None
    d = len(mean) if mean.dim() == 1 else 0
    if not d or cov.shape != (d, d):
        raise UserError(f"{path}: mu {list(mean.shape)} and sigma {list(cov.shape)} are not [d] and [d, d]")
    if features is not None and features.shape[1:] != (d,):
        raise UserError(f"{path}: features {list(features.shape)} are not [n, {d}]")
    if not all(part.isfinite().all() for part in (mean, cov, features) if part is not None):
        raise UserError(f"{path}: mu, sigma or features are not finite")
    if (cov - cov.T).abs().max() > 1e-6 * cov.abs().max() or cov.diagonal().min() < -1e-6 * cov.abs().max():
        raise UserError(f"{path}: sigma is no covariance: not symmetric, or negative on its diagonal")
    try:
        count, copies = (int(found[name]) if name in found else None for name in ("num_images", "copies"))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: num_images and copies are whole numbers: {error}") from None
    number, shape = "images of unknown number" if count is None else f"{count:,} images", found.get("image_shape")
    if shape is not None and (shape.shape != (3,) or shape.dtype.kind not in "iu"):
        raise UserError(f"{path}: image_shape {shape} is not [C, H, W]")
    return Reference(
        Statistics(mean, cov, count),
        str(found.get("description", f"{path} ({number})")),
        features,
        str(found["fingerprint"]) if "fingerprint" in found else None,
        None if shape is None else tuple(shape.tolist()),
        copies or 0,
    )


def read_statistics(path: str | Path, metric: str = "fid") -> dict[str, Any]:
    """Arrays `mu` and `sigma` of EDM2's pickle (github.com/NVlabs/edm2), and `num_images` if given; runs no code.

    Args:
        metric: "fid" (Inception) or "fd_dinov2".
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            content = read_pickle(stream, ARRAYS)
        kept = content.get(metric) if isinstance(content, dict) else None
        if not isinstance(kept, dict) or not {"mu", "sigma"} <= kept.keys():
            raise Refused(f"it holds no statistics 'mu' and 'sigma' as {metric!r}, as EDM2's calculate_metrics.py does")
        found = {name: array(kept[name]) for name in ("mu", "sigma")}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    count = content.get("num_images")
    return found | ({"num_images": count} if isinstance(count, int) else {})
