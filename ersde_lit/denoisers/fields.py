"""Noise that is a smooth field over the image: random sums of Legendre polynomials and plane waves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from ersde_lit.denoisers.noise_laws import NoiseLaw
from ersde_lit.errors import UserError
from ersde_lit.solvers import SeededNoise


@dataclass(frozen=True)
class FieldNoise(NoiseLaw):
    """N = sum_m (eta + e_m) / (eta + 1) h_m with standard normal e_m and fixed fields h_m (EDA's case 1).

    The h_m are the products P_i(x) P_j(y) of Legendre polynomials with 1 <= i + j <= degree, and the cosine and sine of
    pi (k x + m y), |k| and |m| <= waves, each of equal power; x and y run from -1 to 1 over the image, whatever its
    size. All channels have the same field.

    Args:
        degree: of the polynomials; 0: none.
        waves: most periods of a wave over the image, along an axis; 0: none.
        std: root mean square of the random part of N over pixels, at eta = 0.
        eta: 0 is most random and of mean 0; larger makes N nearer to the fixed field sum_m h_m.
    """

    degree: int = 3
    waves: int = 1
    std: float = 0.2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if min(self.degree, self.waves) < 0 or self.degree + self.waves == 0:
            raise UserError(f"a field has a degree or waves of at least 1, got {self.degree} and {self.waves}")
        if not (0 < self.std < math.inf and 0 <= self.eta < math.inf):
            raise UserError(f"a field needs std > 0 and eta >= 0, got {self.std} and {self.eta}")

    def basis(self, height: int, width: int) -> Tensor:
        """The fields h_m, float64 [M, height, width]; UserError where the image has too few pixels for them."""
        if min(height, width) <= (most := max(self.degree, 2 * self.waves)):
            raise UserError(f"a field as {self} needs more than {most} pixels a side, got {height} x {width}")
        fields = _shapes(self.degree, self.waves, height, width)
        return fields * (self.std / math.sqrt(len(fields)))

    def draw(self, seeds: Sequence[int], x0: Tensor, degraded: Tensor | None = None) -> Tensor:
        field = _FieldSteps(self, seeds, x0).initial()
        return field if self.eta == 0 else field + self._mean_field(x0)

    def steps(self, seeds: Sequence[int], like: Tensor) -> "_FieldSteps":
        return _FieldSteps(self, seeds, like)

    def mean(self, like: Tensor) -> Tensor | None:
        return None if self.eta == 0 else self._mean_field(like)

    def _mean_field(self, like: Tensor) -> Tensor:
        return (self.eta / (self.eta + 1) * self.basis(*like.shape[-2:]).sum(0)).to(like)


class _FieldSteps:
    """Fields N less their mean [B, C, H, W], as `SeededNoise` gives white noise."""

    def __init__(self, law: FieldNoise, seeds: Sequence[int], like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.like = like
        self.fields = (law.basis(*like.shape[-2:]) / (law.eta + 1)).to(like.device, dtype)
        self.coefficients = SeededNoise(seeds, (len(self.fields),), like.device, dtype)

    def initial(self) -> Tensor:
        return self._field(self.coefficients.initial())

    def step(self, i: int) -> Tensor:
        return self._field(self.coefficients.step(i))

    def _field(self, e: Tensor) -> Tensor:
        field = e.new_zeros(len(e), *self.fields.shape[1:])
        for e_m, h_m in zip(e.unbind(1), self.fields, strict=True):  # a matrix product is rounded by autocast and TF32
            field.addcmul_(e_m.view(-1, 1, 1), h_m)
        return field.to(self.like.dtype).unsqueeze(1).expand_as(self.like)


@dataclass(frozen=True)
class BiasField(NoiseLaw):
    """A smooth field g that multiplies intensities, v -> v exp(g), noised in log intensity: N = u(v exp(g)) - u(v).

    Here v in [0, 1] is the image and u(v) = 2 log(1 + v / floor) / log(1 + 1 / floor) - 1 in [-1, 1] its log intensity,
    which is linear below the floor, so black stays black. At lam = 1 then y is u of the degraded image, exactly; as N
    depends on x0 where v is not far above the floor, tables with noise are refused. Images need headroom: what a field
    lifts above white a file would clip.

    Args:
        field: the law of g; of std 0.2 most fields stay within 40 %.
        floor: intensity below which u is linear.
    """

    field: FieldNoise = FieldNoise()
    floor: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise UserError(f"the floor of a BiasField is an intensity above 0, at most 1, got {self.floor}")

    @property
    def std(self) -> float:  # type: ignore[override]
        return 2 * self.field.std / ((1 + self.floor) * math.log1p(1 / self.floor))  # to first order, where v is 1

    def encode(self, images: Tensor) -> Tensor:
        return self._log_intensity((images.clamp(min=-1) + 1) / 2)  # augmentation may overshoot black

    def decode(self, x: Tensor) -> Tensor:
        return 2 * self._intensity(x) - 1

    def draw(self, seeds: Sequence[int], x0: Tensor, degraded: Tensor | None = None) -> Tensor:
        return self._log_intensity(self._intensity(x0) * self.field.draw(seeds, x0).exp()) - x0

    def _log_intensity(self, v: Tensor) -> Tensor:
        return 2 * torch.log1p(v / self.floor) / math.log1p(1 / self.floor) - 1

    def _intensity(self, u: Tensor) -> Tensor:
        return self.floor * torch.expm1((u + 1) / 2 * math.log1p(1 / self.floor))


@lru_cache(maxsize=8)
def _shapes(degree: int, waves: int, height: int, width: int) -> Tensor:
    """Legendre products and plane waves, each of mean square 1 over the pixels, float64 [M, height, width]."""
    y, x = ((2 * torch.arange(side, dtype=torch.float64, device="cpu") + 1) / side - 1 for side in (height, width))
    along_y, along_x = ([_legendre(n, at) for n in range(degree + 1)] for at in (y, x))
    shapes = [
        torch.outer(along_y[i], along_x[j]) for i, j in product(range(degree + 1), repeat=2) if 0 < i + j <= degree
    ]
    for k, m in product(range(waves + 1), range(-waves, waves + 1)):
        if k > 0 or m > 0:  # the other half differs in sign alone
            phase = math.pi * (k * x + m * y[:, None])
            shapes += [phase.cos(), phase.sin()]
    fields = torch.stack(shapes)
    return fields / fields.square().mean((1, 2), keepdim=True).sqrt()


def _legendre(n: int, x: Tensor) -> Tensor:
    """P_n(x) by Bonnet's recursion."""
    before, now = torch.zeros_like(x), torch.ones_like(x)
    for k in range(n):
        before, now = now, ((2 * k + 1) * x * now - k * before) / (k + 1)
    return now
