"""What generated images are compared with: statistics of real ones, computed once, cached, read and written."""

from __future__ import annotations

import zipfile
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
from ersde_lit.data.npz import load_array
from ersde_lit.evaluation.cache import cache_folder, digest, replacing
from ersde_lit.evaluation.features import Features, extract
from ersde_lit.evaluation.fid import Moments, Statistics
from ersde_lit.evaluation.image_files import ImageFiles, image_files
from ersde_lit.evaluation.sample import Sample, image_keys

KEEP = 10_000  # images whose features are kept for KID, precision and recall, as ADM's reference batches have
OURS = ("mu", "sigma", "num_images", "description", "fingerprint", "features")
VERSION = 1  # of the cache: raise it when the code below changes what comes out


@dataclass(frozen=True)
class Reference:
    """Statistics of real images, with features of some of them for the metrics that need them.

    Attributes:
        statistics: of all images.
        description: whose they are.
        features: float32 [k, num_features], a random sample; None: none were kept or given.
        fingerprint: of the features it is in; None: unknown, for it was read from a file of others.
    """

    statistics: Statistics
    description: str
    features: Tensor | None = None
    fingerprint: str | None = None

    @property
    def num_images(self) -> int | None:
        """None where the file did not say."""
        return self.statistics.num_images

    def check(self, features: Features) -> None:
        """Raises ValueError where this is a reference in other features."""
        d = len(self.statistics.mean)
        if d != features.num_features:
            raise ValueError(
                f"the reference ({self.description}) has {d} features, and {features.description} are "
                f"{features.num_features}: take a reference in these, or the features of that"
            )
        if self.fingerprint not in (None, features.fingerprint):
            raise ValueError(
                f"the reference ({self.description}) was taken in other features than {features.description}"
            )


def reference_of(
    source: ImageDataModule | ImageFiles,
    features: Features,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
    keep_features: int = KEEP,
    advance: Callable[[int], None] = lambda count: None,
) -> Reference:
    """Of the training images of a data set, or of images on disk; computed once, then cached.

    The name in the cache hashes the images and the features' fingerprint, so it never serves others. Images are
    visited twice, for the hash and for the features.

    Args:
        features: moved to `device` and put in evaluation mode.
        cache: folder; None: `ersde_lit` in $XDG_CACHE_HOME or ~/.cache. One that cannot be written is done without.
        keep_features: of at most so many images, for KID, precision and recall.
        advance: is told how many more images have been measured.

    Raises:
        ValueError: fewer than two images, images that the features do not read, or what `source` raises.
    """
    size = features.batch_size
    batches: Callable[[], Iterable[Tensor]]
    if isinstance(source, ImageDataModule):
        batches, name = (lambda: source.reference_images(size)), f"training images of {type(source).__name__}"
        shape = source.image_shape
    else:
        batches, name, shape = (lambda: source.batches(size)), source.description, source.image_shape
    key = digest(repr((VERSION, features.fingerprint, keep_features, tuple(shape))), batches())
    path = cache_folder(cache) / f"reference-{key}.npz"
    with suppress(ValueError):  # absent or damaged
        found = _read(path)
        return replace(found, description=f"{found.num_images} {name}", fingerprint=features.fingerprint)
    reference = _measure(batches(), features, device, keep_features, name, advance)
    with suppress(OSError):
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
) -> Reference:
    features = features.to(device).eval()
    moments = Moments(features.num_features, sync=False).to(device)
    sample = Sample(features.num_features, keep, sync=False).to(device)
    for images in batches:
        images = images.to(device)
        found, _ = extract(features, images)
        moments.update(found)
        if keep:
            sample.update(image_keys(images), found)
        advance(len(images))
    mean, cov, count = moments.compute()
    kept = sample.compute().rows.cpu() if keep else None
    return Reference(Statistics(mean.cpu(), cov.cpu(), count), f"{count} {name}", kept, features.fingerprint)


def read_reference(
    path: str | Path,
    features: Features,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
    keep_features: int = KEEP,
    exif: Exif = "apply",
) -> Reference:
    """From a file or folder: statistics of ours or in EDM's format, ADM's reference batch, or images of any form.

    An `.npz` with `mu` and `sigma` is read as it is, by EDM's and by ADM's conventions: sigma is the unbiased
    covariance. Where it also has images, `arr_0`, features for KID, precision and recall are computed from them.
    Anything else is images, as for `image_files`, which also says what `exif` is.

    Raises:
        ValueError: nothing is there, it is damaged or contradicts itself, or is in other features.
    """
    path = Path(path).expanduser()
    names = _names(path) if path.suffix == ".npz" else ["arr_0"]
    if not {"mu", "sigma", "arr_0"} & {*names}:
        raise ValueError(f"{path} has neither statistics, mu and sigma, nor images, arr_0")
    if "mu" not in names and "sigma" not in names:
        return reference_of(image_files(path, exif=exif), features, device, cache, keep_features)
    found = _read(path)
    found.check(features)
    if found.features is None and keep_features and "arr_0" in names:
        images = reference_of(image_files(path, exif=exif), features, device, cache, keep_features)
        return replace(found, features=images.features)
    return found


def write_reference(reference: Reference, path: str | Path) -> None:
    """Statistics as an `.npz` in EDM's format, `mu` and `sigma`, whole or not at all; ours has more beside them."""
    more: dict[str, Any] = {"description": reference.description}
    if reference.num_images is not None:
        more["num_images"] = reference.num_images
    if reference.fingerprint is not None:
        more["fingerprint"] = reference.fingerprint
    if reference.features is not None:
        more["features"] = reference.features.numpy()
    mean, cov, _ = reference.statistics
    with replacing(Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, mu=mean.numpy(), sigma=cov.numpy(), **more)


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged, cut short or no npz file"
        raise ValueError(f"{path} cannot be read: {reason}") from None


def _read(path: Path) -> Reference:
    try:
        there = _names(path)
        found = {name: load_array(path, name) for name in OURS if name in there}
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not {"mu", "sigma"} <= set(found):
        raise ValueError(f"{path} has no mu and sigma")
    if numbers := [
        name for name in ("mu", "sigma", "features") if name in found and found[name].dtype.kind not in "fiu"
    ]:
        raise ValueError(f"{path}: {numbers[0]} is {found[numbers[0]].dtype}, not numbers")
    mean, cov = (torch.from_numpy(np.array(found[name], np.float64)) for name in ("mu", "sigma"))
    features = torch.from_numpy(np.array(found["features"], np.float32)) if "features" in found else None
    d = len(mean) if mean.dim() == 1 else 0
    if not d or cov.shape != (d, d):
        raise ValueError(f"{path}: mu {list(mean.shape)} and sigma {list(cov.shape)} are not [d] and [d, d]")
    if features is not None and features.shape[1:] != (d,):
        raise ValueError(f"{path}: features {list(features.shape)} are not [n, {d}]")
    if not all(part.isfinite().all() for part in (mean, cov, features) if part is not None):
        raise ValueError(f"{path}: mu, sigma or features are not finite")
    if (cov - cov.T).abs().max() > 1e-6 * cov.abs().max() or cov.diagonal().min() < -1e-6 * cov.abs().max():
        raise ValueError(f"{path}: sigma is no covariance: not symmetric, or negative on its diagonal")
    count = found.get("num_images")
    return Reference(
        Statistics(mean, cov, None if count is None else int(count)),
        str(found.get("description", path)),
        features,
        str(found["fingerprint"]) if "fingerprint" in found else None,
    )
