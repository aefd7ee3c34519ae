"""Grids of noise levels: n calls -> lams, float64 (n+1,), descending, the last 0 unless told otherwise.

A grid with ``zero=True`` has n levels from lam_max to lam_min and then 0; with ``zero=False`` it has n + 1 levels from
lam_max to lam_min, so that the last step keeps its order and the result keeps noise of level lam_min. A grid of one
call is lam_max and its end. Which steps suit depends on the solver and the number of calls; EDM's are the usual ones.

All raise ValueError where n is not an integer of at least 1, a parameter is no positive number, or levels are out of
order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import schedules
from ersde_lit.solvers.checks import is_integer, is_positive
from ersde_lit.solvers.tableau import check_lams

Grid = Callable[[int], Tensor]


def edm(n: int, lam_min: float = 0.002, lam_max: float = 80.0, rho: float = 7.0, zero: bool = True) -> Tensor:
    """``lam^(1/rho)`` in equal steps (Karras et al. 2022, https://arxiv.org/abs/2206.00364, eq. 5): the usual choice
    for models of EDM's kind, and for others. rho = 7 is theirs; larger rho moves steps to small lam."""
    _check_positive(lam_min=lam_min, lam_max=lam_max, rho=rho)
    return _grid(lam_max * (1 + _ramp(n, zero) * ((lam_min / lam_max) ** (1 / rho) - 1)) ** rho, zero)


def log_uniform(n: int, lam_min: float = 0.002, lam_max: float = 80.0, zero: bool = True) -> Tensor:
    """``ln lam`` in equal steps: "logSNR" of DPM-Solver (https://arxiv.org/abs/2206.00927), "exponential" of
    k-diffusion, and the VE schedule of Song et al. (https://arxiv.org/abs/2011.13456)."""
    return poly_exponential(n, lam_min, lam_max, 1.0, zero)


def poly_exponential(
    n: int, lam_min: float = 0.002, lam_max: float = 80.0, rho: float = 1.0, zero: bool = True
) -> Tensor:
    """``ln lam`` linear in (1 - i/(n-1))^rho: "polyexponential" of k-diffusion; rho > 1 moves steps to small lam."""
    _check_positive(lam_min=lam_min, lam_max=lam_max, rho=rho)
    return _grid(lam_max * (lam_min / lam_max) ** (1 - (1 - _ramp(n, zero)) ** rho), zero)


def uniform_t(n: int, lam_of_t: Callable[[Tensor], Tensor], t_min: float, t_max: float, zero: bool = True) -> Tensor:
    """Equal steps in the time of a process given as ``lam_of_t`` (float64 tensors, increasing): "time_uniform" of
    DPM-Solver, the spacing of DDPM and DDIM; for flow models, where lam = t / (1 - t), that of rectified flow."""
    t = t_max + _ramp(n, zero) * (t_min - t_max)
    return _grid(lam_of_t(t), zero)


def vp_linear(
    n: int, t_min: float = 1e-3, t_max: float = 1.0, beta_min: float = 0.1, beta_max: float = 20.0, zero: bool = True
) -> Tensor:
    """Equal steps in t of the continuous VP process with linear beta (Song et al. 2021), t_min = 1e-3 as there."""
    _check_positive(t_min=t_min, t_max=t_max, beta_min=beta_min, beta_max=beta_max)
    return uniform_t(n, lambda t: schedules.vp_linear_lam(t, beta_min, beta_max), t_min, t_max, zero)


def vp_cosine(n: int, t_min: float = 1e-3, t_max: float = 0.9946, s: float = 0.008, zero: bool = True) -> Tensor:
    """Equal steps in t of the VP process with cosine alpha (Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672);
    t_max = 0.9946, lam 118, is where DPM-Solver starts it; below 1, where lam is infinite."""
    _check_positive(t_min=t_min, t_max=t_max, s=s)
    if t_max >= 1:
        raise UserError(f"t_max of vp_cosine must be below 1, where lam is infinite, not {t_max}")
    return uniform_t(n, lambda t: schedules.cosine_lam(t, s), t_min, t_max, zero)


def vp_levels(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """The lams of DDPM's discrete process with linear beta (Ho et al. 2020), ascending, (steps,) from 0.01 to 157."""
    return schedules.lams_of_betas(schedules.linear_betas(steps, beta_start, beta_end))


def vp_discrete(n: int, levels: Tensor | None = None, zero: bool = False) -> Tensor:
    """Levels ``floor(k T / (n+1))``, k = n .. 0, of a discrete process, by default DDPM's T = 1000: the grid of the
    published ER-SDE results on ImageNet (n = 5: 833, 666, 500, 333, 166, 0). It ends at level 0, lam 0.01, which with
    ``zero=True`` is replaced by 0."""
    levels = vp_levels() if levels is None else levels
    _ramp(n, zero)
    if n >= len(levels):
        raise UserError(f"a process of {len(levels)} levels has no grid of {n} calls; at most {len(levels) - 1}")
    lams = levels[torch.arange(n, -1, -1) * len(levels) // (n + 1)]
    return _grid(lams[:-1] if zero else lams, zero)


def iddpm(n: int, lam_min: float = 0.002, lam_max: float = 81.0, steps: int = 1000, zero: bool = True) -> Tensor:
    """Equal steps in the index of improved DDPM's levels (discrete cosine) between lam_min and lam_max, as EDM samples
    such models (Karras et al. 2022, Table 1). The default range has 992 levels, 80.2 to 0.0064."""
    levels = schedules.cosine_lam(1 - torch.arange(1, steps, dtype=torch.float64) / steps, offset=0.008)
    levels = levels[(levels >= lam_min) & (levels <= lam_max)]
    ramp = _ramp(n, zero)
    if len(ramp) > len(levels):
        raise UserError(f"there are {len(levels)} levels from {lam_max} to {lam_min}: too few for {n} calls")
    return _grid(levels[((len(levels) - 1) * ramp).round().long()], zero)


@dataclass(frozen=True)
class Fixed:
    """Fixed list of (n+1,) lams, for its own n only."""

    lams: Sequence[float]

    def __call__(self, n: int) -> Tensor:
        lams = check_lams(self.lams)
        if n != len(lams) - 1:
            raise UserError(f"the list of {len(lams)} lams makes {len(lams) - 1} calls, not {n}")
        return lams


def check_nfe(n: int) -> None:
    if not is_integer(n, 1):
        raise UserError(f"the number of calls must be an integer of at least 1, not {n!r}")


def _check_positive(**parameters: float) -> None:
    for name, value in parameters.items():
        if not is_positive(value):
            raise UserError(f"{name} of a grid must be a positive number, not {value!r}")


def _ramp(n: int, zero: bool) -> Tensor:
    """From 0 to 1 in n points, or n + 1 where the grid has no 0 to end in."""
    check_nfe(n)
    return torch.linspace(0, 1, n if zero else n + 1, dtype=torch.float64)


def _grid(lams: Tensor, zero: bool) -> Tensor:
    return check_lams(torch.cat([lams, lams.new_zeros(1)]) if zero else lams)
