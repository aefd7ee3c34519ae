"""Noising processes x = alpha(t) x0 + sigma(t) eps: one problem in y = x / alpha, lam = sigma / alpha.

`lam` is the noise-to-signal ratio, what EDM calls sigma; it is NOT DPM-Solver's lambda, which is the log-SNR -ln(lam).
A process only says how its own time t maps to lam, and what alpha is there. Solvers never see one.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import schedules

MOST_STEPS = 100_000  # of a discrete process: a file must not ask for all memory with one number


class Process:
    """Base class. Times and lams are tensors of any shape; results have their shape, dtype and device."""

    @property
    def t_range(self) -> tuple[float, float]:
        """The times between which samples are drawn."""
        raise NotImplementedError

    @property
    def levels(self) -> Tensor | None:
        """The lams of a discrete-time process, float64 [steps], ascending; None where time is continuous."""
        return None

    def lam(self, t: Tensor) -> Tensor:
        """sigma(t) / alpha(t), rising with t."""
        raise NotImplementedError

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """The inverse of `lam`."""
        raise NotImplementedError

    def alpha_of_lam(self, lam: Tensor) -> Tensor:
        """alpha where sigma / alpha is lam."""
        raise NotImplementedError

    def alpha(self, t: Tensor) -> Tensor:
        return self.alpha_of_lam(self.lam(t))

    def sigma(self, t: Tensor) -> Tensor:
        lam = self.lam(t)
        return lam * self.alpha_of_lam(lam)

    def lam_range(self) -> tuple[float, float]:
        """The lams at the ends of `t_range`."""
        low, high = self.lam(torch.tensor(self.t_range, dtype=torch.float64)).tolist()
        return low, high


@dataclass(frozen=True)
class VP(Process):
    """Variance preserving, alpha^2 + sigma^2 = 1, beta linear in time (Ho et al. 2020; Song et al. 2021, eq. 33).

    Args:
        beta_min, beta_max: beta(t) rises linearly between them over t in [0, 1].
        steps: None for continuous time, or the length of DDPM's discrete chain (1000 as published), whose step k
            has the time t = k / (steps - 1).
        t_min: where continuous time ends for samplers: 1e-3 as published by Song et al., 1e-5 by Karras et al. 2022.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    steps: int | None = None
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise UserError(f"VP needs 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max}")
        if not 0 < self.t_min < 1:
            raise UserError(f"VP needs 0 < t_min < 1, got {self.t_min}")
        _check_steps(self.steps)
        if self.steps is not None and self.steps <= self.beta_max:
            raise UserError(
                f"VP needs more steps than beta_max = {self.beta_max} (or None: continuous), got {self.steps}"
            )

    @property
    def t_range(self) -> tuple[float, float]:
        return (self.t_min, 1.0) if self.steps is None else (0.0, 1.0)

    @cached_property
    def levels(self) -> Tensor | None:
        if self.steps is None:
            return None
        low, high = self.beta_min / self.steps, self.beta_max / self.steps
        return schedules.lams_of_betas(schedules.linear_betas(self.steps, low, high))

    def lam(self, t: Tensor) -> Tensor:
        if (levels := self.levels) is not None:
            return _level_at(levels, t)
        return schedules.vp_linear_lam(t, self.beta_min, self.beta_max)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        if (levels := self.levels) is not None:
            return _time_of(lam, (levels[1:] * levels[:-1]).sqrt())  # nearest in ln lam
        slope = self.beta_max - self.beta_min
        return ((self.beta_min**2 + 2 * slope * torch.log1p(lam**2)).sqrt() - self.beta_min) / slope

    def alpha_of_lam(self, lam: Tensor) -> Tensor:
        return torch.rsqrt(1 + lam**2)


@dataclass(frozen=True)
class ScaledLinear(VP):
    """DDPM's discrete chain with sqrt(beta) linear in time, not beta (Rombach et al. 2022); arguments as of `VP`."""

    steps: int | None = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is None:
            raise UserError("ScaledLinear needs a number of steps: it has no continuous time")

    @cached_property
    def levels(self) -> Tensor:
        steps = self.steps or 0  # never None here
        return schedules.lams_of_betas(
            schedules.scaled_linear_betas(steps, self.beta_min / steps, self.beta_max / steps)
        )


@dataclass(frozen=True)
class Cosine(Process):
    """Variance preserving in discrete steps, alpha_k a cosine (Nichol & Dhariwal 2021): iDDPM and guided diffusion.

    Step k has the time t = k / (steps - 1). A lam between two levels belongs to the one that differs less.

    Args:
        steps: length of the chain; M of Karras et al. 2022, table 1.
        offset: s of Nichol & Dhariwal's eq. 17, C_2 of Karras et al.: how far from the top the cosine starts.
        max_beta: beta_k is at most this, 1 - C_1 of Karras et al.; without it the last alpha would be 0.
    """

    steps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999
    t_range = 0.0, 1.0

    def __post_init__(self) -> None:
        if self.steps < 2 or self.offset < 0 or not 0 < self.max_beta < 1:
            raise UserError(f"Cosine needs 2 steps or more, offset >= 0 and 0 < max_beta < 1, got {self}")
        _check_steps(self.steps)

    @cached_property
    def levels(self) -> Tensor:
        return schedules.lams_of_betas(schedules.cosine_betas(self.steps, self.offset, self.max_beta))

    def lam(self, t: Tensor) -> Tensor:
        return _level_at(self.levels, t)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        return _time_of(lam, (self.levels[1:] + self.levels[:-1]) / 2)

    def alpha_of_lam(self, lam: Tensor) -> Tensor:
        return torch.rsqrt(1 + lam**2)


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding, alpha = 1 (Song & Ermon 2019), with time t = lam = sigma as in Karras et al. 2022.

    Args:
        sigma_min, sigma_max: the noise levels a VE-preconditioned network is trained on and sampled between.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"VE needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def t_range(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def lam(self, t: Tensor) -> Tensor:
        return t

    def t_of_lam(self, lam: Tensor) -> Tensor:
        return lam

    def alpha_of_lam(self, lam: Tensor) -> Tensor:
        return torch.ones_like(lam)


@dataclass(frozen=True)
class EDA(Process):
    """Degradations of strength lam in (0, 1], alpha = 1: lam(t) is the sigma of DDPM's VP, 1 at t = 1.

    With "noise" other than white y is the clean image at lam = 0 and the degraded one at lam = 1 (Qiu et al. 2026).

    Args:
        beta_min, beta_max: of the VP process.
        t_min: where samplers end; 0.01, the first of the 100 published levels, is also where UniformTime(0.01) begins.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 0.01

    def __post_init__(self) -> None:
        VP(self.beta_min, self.beta_max, t_min=self.t_min)  # raises as it does

    @property
    def t_range(self) -> tuple[float, float]:
        return self.t_min, 1.0

    @property
    def _last(self) -> float:
        """VP's sigma^2 at t = 1."""
        return -math.expm1(-(self.beta_min + self.beta_max) / 2)

    def lam(self, t: Tensor) -> Tensor:
        exponent = t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)
        return (-torch.expm1(-exponent) / self._last).sqrt()

    def t_of_lam(self, lam: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        lam = lam.clamp(max=1)
        left = (1 - lam) * (1 + lam) + math.exp(-(self.beta_min + self.beta_max) / 2) * lam**2  # 1 - sigma^2, exactly
        exponent = torch.log1p(self._last * lam**2 / left)
        return ((self.beta_min**2 + 2 * slope * exponent).sqrt() - self.beta_min) / slope

    def alpha_of_lam(self, lam: Tensor) -> Tensor:
        return torch.ones_like(lam)


@dataclass(frozen=True)
class Flow(Process):
    """Straight paths of flow matching, alpha = 1 - t and sigma = t (Lipman et al. 2023; Liu et al. 2023)."""

    t_range = 1e-3, 1 - 1e-3

    def lam(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        return lam / (1 + lam)

    def alpha_of_lam(self, lam: Tensor) -> Tensor:
        return 1 / (1 + lam)


def _check_steps(steps: int | None) -> None:
    if steps is not None and steps > MOST_STEPS:
        raise UserError(f"a chain has at most {MOST_STEPS:,} steps, got {steps:,}")


def _level_at(levels: Tensor, t: Tensor) -> Tensor:
    return levels.to(t)[(t * (len(levels) - 1)).round().long()]


def _time_of(lam: Tensor, halfway: Tensor) -> Tensor:
    """The time of the level nearest to each lam, given where one level ends and the next begins."""
    return torch.bucketize(lam, halfway.to(lam)).to(lam) / len(halfway)
