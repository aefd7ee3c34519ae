"""Frechet inception distance (FID) in any features, through torchmetrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ersde_lit.evaluation.features import Features


class Statistics(NamedTuple):
    """What FID keeps of a set of images: mean and unbiased covariance of their features, float64, on the CPU."""

    mean: Tensor  # [d]
    cov: Tensor  # [d, d]
    num_images: int


def statistics(features: Features, batches: Iterable[Tensor], device: torch.device | str = "cpu") -> Statistics:
    """Of uint8 images, batch by batch, in this process; `features` is moved to `device` and put in evaluation mode.

    Raises:
        ValueError: fewer than two images.
    """
    features = features.to(device).eval()
    d, count = features.num_features, 0
    total = torch.zeros(d, dtype=torch.float64, device=device)
    outer = torch.zeros(d, d, dtype=torch.float64, device=device)
    for images in batches:
        f = _features_of(features, images.to(device))
        total += f.sum(0)
        outer += f.T @ f
        count += len(f)
    if count < 2:
        raise ValueError(f"statistics need at least two images, not {count}")
    mean = total / count
    return Statistics(mean.cpu(), (outer - count * mean.outer(mean)).cpu() / (count - 1), count)


class FID:
    """FID of uint8 images to a reference: |m - m_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2)) (Heusel et al., 2017).

    Under torch.distributed every rank brings its own images and the same reference; `compute` is called on all ranks,
    also on those without an image, and gives each the value over all images.

    Args:
        features: put in evaluation mode here.
        reference: statistics in these features.
        sync: whether `compute` adds up the ranks; False where only some of them call it.
    """

    def __init__(self, features: Features, reference: Statistics, sync: bool = True) -> None:
        mean, cov, n = reference
        self.metric = FrechetInceptionDistance(_Double(features.eval()), sync_on_compute=sync)
        # As the default of the real state, the reference outlives `reset`; of the ranks' copies of it, one counts.
        self.metric.add_state("real_features_sum", n * mean, dist_reduce_fx=_first)
        self.metric.add_state("real_features_cov_sum", (n - 1) * cov + n * mean.outer(mean), dist_reduce_fx=_first)
        self.metric.add_state("real_features_num_samples", torch.tensor(n), dist_reduce_fx=_first)
        self.metric.orig_dtype = torch.float64  # the result's; set by `update`, which a rank without images never calls

    def to(self, device: torch.device | str) -> Self:
        self.metric.to(device)
        return self

    def update(self, images: Tensor) -> None:
        """Adds uint8 images [n, C, H, W]. Raises TypeError for any other type: floats are for `quantise` to turn."""
        self.metric.update(images.to(self.metric.device), real=False)

    def compute(self) -> float:
        """Over all images since `reset`. Raises RuntimeError for fewer than two."""
        return self.metric.compute().item()

    def reset(self) -> None:
        self.metric.reset()


class _Double(nn.Module):
    """Checked uint8 images to float64 features: torchmetrics casts its result to their type."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features
        self.num_features = features.num_features

    def forward(self, images: Tensor) -> Tensor:
        return _features_of(self.features, images)


@torch.no_grad()
def _features_of(features: Features, images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise TypeError(f"FID takes uint8 images [n, C, H, W], not {images.dtype} {list(images.shape)}: quantise them")
    return features(images).double()


def _first(copies: Tensor) -> Tensor:
    return copies[0]
