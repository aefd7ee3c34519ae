"""Frechet inception distance (FID) in any features, from sums that torchmetrics adds up over ranks."""

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.metrics.features import Features, extract
from ersde_lit.metrics.pooled import Pooled, with_float64


class Statistics(NamedTuple):
    """Mean and unbiased covariance of the features of a set of images, float64, on the CPU."""

    mean: Tensor  # [d]
    cov: Tensor  # [d, d]
    num_images: int | None  # None: unknown, as for statistics that others published


class Moments(Pooled):
    """Float64 sums over features, from which `Statistics` follow; added up over the ranks, also those without any."""

    total: Tensor
    outer: Tensor
    count: Tensor

    def __init__(self, num_features: int, sync: bool = True, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(sync, group)
        zeros = torch.zeros(num_features, num_features, dtype=torch.float64)
        self.add_state("total", zeros[0], dist_reduce_fx="sum")
        self.add_state("outer", zeros, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.update(self.outer[:0])  # torchmetrics warns of a rank without images otherwise

    def update(self, features: Tensor) -> None:
        """Adds features [n, num_features]."""
        f = features.double()
        self.total += f.sum(0)
        self.outer.addmm_(f.T, f)
        self.count += len(f)

    def compute(self) -> Statistics:
        count = int(self.count)
        if count < 2:
            raise UserError(f"statistics need at least two images, not {count}")
        mean = self.total / count
        cov = (self.outer - count * mean.outer(mean)) / (count - 1)
        if not cov.isfinite().all():
            raise UserError(f"features are not finite in all of {count} images: there is no mean or covariance")
        return Statistics(mean, cov, count)


class FrechetDistance:
    """|m - m_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2)) to a reference (Heusel et al., 2017), any number of times.

    With any R R^T = C_r, found once, R^T C R is symmetric and has the eigenvalues of C C_r, in a quarter of the time.
    To rounding (1e-8 of the traces where covariances are singular) the distance is what is published.
    """

    def __init__(self, reference: Statistics) -> None:
        self.reference = reference

    @cached_property
    def factor(self) -> Tensor:
        """R [d, d]."""
        lower, failed = torch.linalg.cholesky_ex(self.reference.cov)
        if not failed:
            return lower
        values, vectors = torch.linalg.eigh(self.reference.cov)  # of a singular one, to rounding
        return vectors * values.clamp(min=0).sqrt()

    def __call__(self, statistics: Statistics) -> float:
        mean, cov, factor = statistics.mean, statistics.cov, self.factor.to(statistics.mean.device)
        product = factor.T @ cov @ factor
        cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
        shift = (mean - self.reference.mean.to(mean.device)).square().sum()
        return (shift + cov.trace() + self.reference.cov.trace().to(mean.device) - 2 * cross).item()


def statistics(features: Features, batches: Iterable[Tensor], device: torch.device | str = "cpu") -> Statistics:
    """Statistics of batches of uint8 images in this process; moves `features` to `device`, in evaluation mode."""
    device = with_float64(device)
    features, moments = features.to(device).eval(), Moments(features.num_features, sync=False).to(device)
    for images in batches:
        moments.update(extract(features, images.to(device))[0])
    mean, cov, count = moments.compute()
    return Statistics(mean.cpu(), cov.cpu(), count)
