"""Noise laws: what N is in y = x0 + lam N; white Gaussian noise, or the degradation that a model is to remove."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import SeededNoise
from ersde_lit.solvers.loop import StepNoise


class NoiseLaw:
    """Base class of laws of N in y = x0 + lam N (Qiu et al. 2026, "EDA", https://arxiv.org/abs/2507.18534).

    The mean velocity of y along lam is (y - E[x0 | y]) / lam whatever N is, so every table without noise samples every
    law. A table with noise needs N to have one Gaussian law for all x0, of which `steps` and `mean` are made.

    Attributes:
        std: root mean square of N over pixels of encoded images, about; it scales the network's input alone.
    """

    std: float = 1.0

    def encode(self, images: Tensor) -> Tensor:
        """What is noised, of images in [-1, 1]; same shape."""
        return images

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return x

    def draw(self, seeds: Sequence[int], x0: Tensor, degraded: Tensor | None = None) -> Tensor:
        """N for encoded images x0 [B, C, H, W], of that shape and dtype; that of image k depends on seeds[k].

        Args:
            degraded: the encoded degraded images of x0, for laws of pairs.
        """
        raise NotImplementedError

    def steps(self, seeds: Sequence[int], like: Tensor) -> StepNoise:
        """N less its mean for the steps of a sampler, shaped as the states `like` [B, C, H, W].

        Raises:
            UserError: the law depends on x0, so samplers with noise are wrong on it.
        """
        raise UserError(
            f"the law of {type(self).__name__} depends on x0, so samplers with noise are wrong on it: take one without "
            "(--solver er_sde:noise_scale=ode, ddim, dpm++2m, unipc2, ipndm or deis)"
        )

    def mean(self, like: Tensor) -> Tensor | None:
        """Mean of N, which broadcasts to the states `like`; None: zero, or it depends on x0."""
        return None


@dataclass(frozen=True)
class White(NoiseLaw):
    """Independent standard normal pixels: EDM, and all that is not restoration."""

    def draw(self, seeds: Sequence[int], x0: Tensor, degraded: Tensor | None = None) -> Tensor:
        return SeededNoise(seeds, x0.shape[1:], x0.device, x0.dtype).initial()

    def steps(self, seeds: Sequence[int], like: Tensor) -> SeededNoise:
        return SeededNoise(seeds, like.shape[1:], like.device, like.dtype)


@dataclass(frozen=True)
class PairNoise(NoiseLaw):
    """N = (eta + e) / (eta + 1) (degraded - x0) with one standard normal e an image, for data of pairs (EDA's case 2).

    Args:
        eta: 0 is most random; towards infinity the straight path from the degraded image to the clean one. 10 as
            published.
        std: root mean square of degraded - x0 over pixels and images in [-1, 1]; scales the network's input alone.
    """

    eta: float = 10.0
    std: float = 0.3

    def __post_init__(self) -> None:
        if not (0 <= self.eta < math.inf and 0 < self.std < math.inf):
            raise UserError(f"PairNoise needs eta >= 0 and std > 0, got {self.eta} and {self.std}")

    def draw(self, seeds: Sequence[int], x0: Tensor, degraded: Tensor | None = None) -> Tensor:
        if degraded is None:
            raise UserError("PairNoise is learned from pairs: train it on ersde_lit.data.ImagePairs")
        e = SeededNoise(seeds, (1, 1, 1), x0.device, x0.dtype).initial()
        return (self.eta + e) / (self.eta + 1) * (degraded - x0)
