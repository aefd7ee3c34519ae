"""Oracles: exact denoisers, and the exact law of the samples that a table makes of Gaussian data.

To test a sampler without training or Monte Carlo:

    data = Gaussian.spectrum()
    w2_error(data, ERSDE(3).tableau(grids.edm(20)))
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from ersde_lit.solvers.loop import sample
from ersde_lit.solvers.tableau import Tableau


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Data N(mean, diag(std^2)), and its denoiser ``(y [B, *d], lam) -> x0``.

    Any covariance is this in its eigenbasis, which no sampler that is linear in y, x0 and noise can tell apart.

    Attributes:
        mean, std: float64, both of the shape *d of one sample.
    """

    mean: Tensor
    std: Tensor

    @staticmethod
    def spectrum(modes: int = 16) -> "Gaussian":
        """Standard deviations from 1 to 0.01 in geometric steps, as image spectra fall; means from -0.2 to 0.2."""
        return Gaussian(
            torch.linspace(-0.2, 0.2, modes, dtype=torch.float64), torch.logspace(0, -2, modes, dtype=torch.float64)
        )

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        mean, variance = self.mean.to(y), self.std.to(y) ** 2
        return mean + variance / (variance + lam**2) * (y - mean)

    def marginal_std(self, lam: Tensor) -> Tensor:
        """Standard deviation of y at lam; its mean is that of the data."""
        return (self.std**2 + lam**2).sqrt()


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data sum_k weights_k N(mean_k, diag(std_k^2)), and its denoiser ``(y [B, d], lam) -> x0``.

    Attributes:
        weights: float64 (K,), sum 1.
        mean: (K, d).
        std: (K, d), or (K, 1) where a component is isotropic.
    """

    weights: Tensor
    mean: Tensor
    std: Tensor

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        mean, data_variance = self.mean.to(y), self.std.to(y).expand_as(self.mean) ** 2
        variance = data_variance + lam**2
        offset = y.unsqueeze(1) - mean
        log_density = -0.5 * (offset**2 / variance + variance.log()).sum(-1)
        responsibility = (self.weights.to(y).log() + log_density).softmax(-1)
        return (responsibility.unsqueeze(-1) * (mean + data_variance / variance * offset)).sum(1)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples (n, d) of the data, float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, self.mean.shape[1], dtype=torch.float64, generator=generator)
        return self.mean[k] + self.std[k] * normal


@dataclass(frozen=True, eq=False)
class LowRankMixture:
    """Data sum_k weights_k N(mean_k, C_k) that can look like images, and its denoiser ``(y [B, *d], lam) -> x0``.

    C_k has the variances variance_k along the columns of basis_k and rest_k along all else, as a mixture of
    probabilistic principal components (Tipping & Bishop 1999) has. Fitted to images, by
    `ersde_lit.analysis.mixture.fit_mixture`, it is a perfect network for data much like them: what a sampler gets wrong
    there is its own error.

    A call costs two products of [B, D] with [D, K R], in the dtype of y; only the distances to the means, K a sample,
    are float64, since responsibilities are exponentials of their differences.

    Attributes:
        weights: (K,), sum 1.
        mean: (K, D).
        basis: (K, D, R), orthonormal columns.
        variance: (K, R), positive.
        rest: (K,), positive.
    """

    weights: Tensor
    mean: Tensor
    basis: Tensor
    variance: Tensor
    rest: Tensor

    def to(self, dtype: torch.dtype) -> "LowRankMixture":
        """The same in `dtype`: one of y's dtype is not converted at each call."""
        return LowRankMixture(*(getattr(self, field.name).to(dtype) for field in fields(self)))

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        shape, y = y.shape, y.flatten(1)
        mean, basis, variance, rest = (x.to(y) for x in (self.mean, self._columns, self.variance, self.rest))
        along = (y @ basis).view(len(y), *variance.shape) - self._mean_along.to(y)
        far, shrink, shrink_rest = variance + lam**2, variance / (variance + lam**2), rest / (rest + lam**2)

        distance = self._squared_distances(y)
        inside = along.double().square()
        across = (distance - inside.sum(-1)).clamp(min=0) / (rest.double() + lam**2)
        spread = far.double().log().sum(-1) + (y.shape[1] - variance.shape[1]) * (rest.double() + lam**2).log()
        log_density = -0.5 * ((inside / far.double()).sum(-1) + across + spread)
        share = (self.weights.to(y.device, torch.float64).log() + log_density).softmax(-1).to(y.dtype)

        # mean + shrink_rest (y - mean) + basis (shrink - shrink_rest) along, averaged by share
        moved = share.unsqueeze(-1) * (shrink - shrink_rest.unsqueeze(-1)) * along
        x0 = (share @ shrink_rest).unsqueeze(-1) * y + (share * (1 - shrink_rest)) @ mean + moved.flatten(1) @ basis.T
        return x0.view(shape)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples (n, D) of the data, float64."""
        k = torch.multinomial(self.weights.double(), n, replacement=True, generator=generator)
        x = torch.randn(n, self.mean.shape[1], dtype=torch.float64, generator=generator)
        for component in range(len(self.weights)):
            rows = k == component
            mean, basis, variance, rest = (
                part[component].double() for part in (self.mean, self.basis, self.variance, self.rest)
            )
            scale = variance.sqrt() - rest.sqrt()
            x[rows] = mean + rest.sqrt() * x[rows] + ((x[rows] @ basis) * scale) @ basis.T
        return x

    @cached_property
    def _columns(self) -> Tensor:
        """All bases side by side, (D, K R)."""
        return self.basis.transpose(0, 1).flatten(1).contiguous()

    @cached_property
    def _mean_along(self) -> Tensor:
        return torch.einsum("kd,kdr->kr", self.mean, self.basis)

    def _squared_distances(self, y: Tensor) -> Tensor:
        y, mean = y.double(), self.mean.to(y.device, torch.float64)
        return y.square().sum(1, keepdim=True) - 2 * y @ mean.T + mean.square().sum(1)


class BasisNoise:
    """Basis vectors as noise, one row per source: 1 in row 1 for `initial`, in row i + 2 for step i, else 0."""

    def __init__(self, rows: int, like: Tensor):
        self._zeros = like.new_zeros(rows, *like.shape)

    def initial(self) -> Tensor:
        return self.step(-1)

    def step(self, i: int) -> Tensor:
        unit = self._zeros.clone()
        unit[i + 2] = 1
        return unit


def output_law(
    run: Callable[[Tensor, BasisNoise], Tensor], mean: Tensor, std: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a sampler's output when it starts from N(mean, diag(std^2)), without Monte Carlo.

    With the denoiser of `Gaussian` a sampler that is linear in x0 and noise is affine in y and in the noise of each
    step, coordinate by coordinate. So steps + 2 runs tell all, here as rows of one batch: from the mean without noise,
    with the start moved by std, and with the noise of one step alone.

    Args:
        run: ``run(y [steps + 2, *d], noise)``, e.g. ``sample(gaussian, tableau, y, noise=noise)``; a Sampler starts
            from ``noise.initial()`` instead of y, and then mean and std give the shape only.
        mean, std: of the start.
        steps: at least the number of steps that draw noise.
    """
    y = mean.repeat(steps + 2, *[1] * mean.ndim)
    y[1] += std
    out = run(y, BasisNoise(steps + 2, mean))
    return out[0], (out[1:] - out[0]).square().sum(0).sqrt()


def w2(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> float:
    """2-Wasserstein distance of N(mean, diag(std^2)) and another such Gaussian."""
    return float(((mean - other_mean) ** 2 + (std - other_std) ** 2).sum().sqrt())


def w2_error(data: Gaussian, tableau: Tableau) -> float:
    """2-Wasserstein distance from a table's output to the data, noisy at ``lams[-1]`` if not 0; exact start."""
    first, last = tableau.lams[0], tableau.lams[-1]
    law = output_law(
        lambda y, noise: sample(data, tableau, y, noise=noise), data.mean, data.marginal_std(first), tableau.nfe
    )
    return w2(*law, data.mean, data.marginal_std(last))
