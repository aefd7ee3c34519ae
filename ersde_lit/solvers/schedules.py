"""Noise schedules of the VP processes, lam = sigma / alpha, for grids, processes and schedulers."""

import math

import torch
from torch import Tensor


def lams_of_betas(betas: Tensor) -> Tensor:
    """Lams of a discrete chain whose step k multiplies alpha^2 by 1 - beta_k: lam^2 = 1 / alpha^2 - 1, ascending."""
    return torch.expm1(-torch.log1p(-betas).cumsum(0)).sqrt()


def linear_betas(steps: int, low: float, high: float) -> Tensor:
    """Betas of DDPM's chain, linear from `low` to `high` (Ho et al. 2020), float64 (steps,)."""
    return torch.linspace(low, high, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int, low: float, high: float) -> Tensor:
    """Betas whose square roots are linear (Rombach et al. 2022), float64 (steps,)."""
    return linear_betas(steps, math.sqrt(low), math.sqrt(high)) ** 2


def cosine_betas(steps: int, offset: float, max_beta: float) -> Tensor:
    """Betas of the chain with cosine alpha, at most `max_beta` (Nichol & Dhariwal 2021, eq. 17), float64 (steps,)."""
    angle = torch.linspace(offset, 1 + offset, steps + 1, dtype=torch.float64) / (1 + offset)
    squared_alpha = (angle * math.pi / 2).cos() ** 2
    return (1 - squared_alpha[1:] / squared_alpha[:-1]).clamp(max=max_beta)


def vp_linear_lam(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """lam(t) of the continuous VP process with beta linear over t in [0, 1] (Song et al. 2021, eq. 33)."""
    return torch.expm1(beta_min * t + 0.5 * (beta_max - beta_min) * t**2).sqrt()


def cosine_lam(t: Tensor, offset: float) -> Tensor:
    """lam(t) where ``alpha(t) = cos((t + s) / (1 + s) pi / 2) / cos(s / (1 + s) pi / 2)``, s the offset."""
    alpha = ((t + offset) / (1 + offset) * (math.pi / 2)).cos() / math.cos(offset / (1 + offset) * math.pi / 2)
    return (alpha**-2 - 1).sqrt()
