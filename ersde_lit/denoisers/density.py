"""Training densities of noise levels, each given by its inverse distribution function.

With u uniform in (0, 1), `density.lam(u)` is a noise level; with u at fixed quantiles, the fixed levels of validation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ersde_lit.denoisers.processes import Process


class NoiseDensity:
    """Base class."""

    def lam(self, u: Tensor, process: Process) -> Tensor:
        """Noise levels lam at the quantiles u in [0, 1); shape and dtype of u."""
        raise NotImplementedError


@dataclass(frozen=True)
class LogNormal(NoiseDensity):
    """ln lam ~ N(mean, std^2): EDM's P_mean and P_std (Karras et al. 2022); logit-normal time for a flow."""

    mean: float = -1.2
    std: float = 1.2

    def lam(self, u: Tensor, process: Process) -> Tensor:
        return torch.exp(self.mean + self.std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))


@dataclass(frozen=True)
class LogUniform(NoiseDensity):
    """ln lam uniform between the ends of the process: how VE is trained (Song et al. 2021)."""

    def lam(self, u: Tensor, process: Process) -> Tensor:
        low, high = process.lam_range()
        return low * (high / low) ** u


@dataclass(frozen=True)
class UniformTime(NoiseDensity):
    """t uniform on [t_min, 1], or over the steps of a discrete process: how VP is trained (Ho et al. 2020)."""

    t_min: float = 1e-5

    def lam(self, u: Tensor, process: Process) -> Tensor:
        if (levels := process.levels) is not None:
            return process.lam((u * len(levels)).floor() / (len(levels) - 1))
        return process.lam(self.t_min + u * (process.t_range[1] - self.t_min))
