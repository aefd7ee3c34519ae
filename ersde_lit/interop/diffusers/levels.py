"""Noise levels and timesteps of diffusers' schedulers, in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ersde_lit.denoisers.processes import Cosine
from ersde_lit.errors import UserError
from ersde_lit.solvers import grids
from ersde_lit.solvers.schedules import lams_of_betas, linear_betas, scaled_linear_betas

_ZERO_SNR = 2.0**-24  # alpha^2 where rescaling would make it 0, as diffusers has it


def trained_lams(config: Any) -> Tensor:
    """The lams of a discrete VP process, (num_train_timesteps,), ascending.

    The options of the configuration are those of DDPMScheduler: rescale_betas_zero_snr shifts and scales alpha so that
    the last is (nearly) 0 (Lin et al. 2024, algorithm 1, https://arxiv.org/abs/2305.08891), after snr_shift_scale
    (CogVideoX) has divided alpha^2 / sigma^2.
    """
    c = config
    if c.trained_betas is not None:
        lams = lams_of_betas(torch.as_tensor(c.trained_betas, dtype=torch.float64))
    elif c.beta_schedule == "linear":
        lams = lams_of_betas(linear_betas(c.num_train_timesteps, c.beta_start, c.beta_end))
    elif c.beta_schedule == "scaled_linear":
        lams = lams_of_betas(scaled_linear_betas(c.num_train_timesteps, c.beta_start, c.beta_end))
    elif c.beta_schedule == "squaredcos_cap_v2":
        lams = Cosine(c.num_train_timesteps).levels
    else:
        raise UserError(f"beta_schedule must be linear, scaled_linear or squaredcos_cap_v2, not {c.beta_schedule!r}")
    if not c.snr_shift_scale > 0:
        raise UserError(f"snr_shift_scale must be positive, not {c.snr_shift_scale}")
    lams = c.snr_shift_scale**0.5 * lams
    if c.rescale_betas_zero_snr:
        alpha = torch.rsqrt(1 + lams**2)
        squared = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        last_but_one = float(squared[-2])  # some betas make it less than _ZERO_SNR
        squared[-1] = _ZERO_SNR if last_but_one > _ZERO_SNR else last_but_one / 2
        lams = (1 / squared - 1).sqrt()
    return lams


def spaced_timesteps(spacing: str, n: int, levels: int, offset: int = 0) -> Tensor:
    """n of the timesteps 0 .. levels - 1, int64, descending; the last step goes from the last of them to 0.

    "linspace", "leading" and "trailing" are those of Lin et al. 2024, table 2. Where rounding would make two of them
    equal, near n = levels, they are moved apart.
    """
    grids.check_nfe(n)
    if n > levels:
        raise UserError(f"{n} inference steps are more than the model's {levels} levels")
    order = torch.arange(n)
    if spacing == "linspace":
        t = torch.linspace(0, levels - 1, n + 1, dtype=torch.float64)[1:].round()
    elif spacing == "leading":
        t = (order + 1.0) * (levels // (n + 1)) + offset
    elif spacing == "trailing":
        t = (levels - order.flip(0).double() * levels / n).round() - 1
    else:
        raise UserError(f"timestep_spacing must be linspace, leading or trailing, not {spacing!r}")
    return ((t.long() - order).clamp(0, levels - n) + order).flip(0)


def beta_spaced(n: int, lam_min: float, lam_max: float, zero: bool = True) -> Tensor:
    """Grid of the quantiles of Beta(0.6, 0.6), dense at both ends: Lee et al. 2024, https://arxiv.org/abs/2407.12173."""
    from scipy.stats import beta  # type: ignore[import-untyped]

    quantiles = beta.ppf(1 - torch.linspace(0, 1, n if zero else n + 1, dtype=torch.float64).numpy(), 0.6, 0.6)
    lams = lam_min + torch.from_numpy(quantiles) * (lam_max - lam_min)
    return torch.cat([lams, lams.new_zeros(1)]) if zero else lams


# Grids by option; each is called as (n, lam_min=..., lam_max=..., zero=...).
SPACINGS: dict[str, Callable[..., Tensor]] = {
    "use_karras_sigmas": partial(grids.edm, rho=7.0),
    "use_exponential_sigmas": grids.log_uniform,
    "use_lu_lambdas": grids.log_uniform,
    "use_beta_sigmas": beta_spaced,
}


def shifted(t: Tensor, shift: float) -> Tensor:
    """Flow times t moved towards 1: Esser et al. 2024, eq. 23, https://arxiv.org/abs/2403.03206."""
    return shift * t / (1 + (shift - 1) * t)


def flow_lams(t: Tensor) -> Tensor:
    """lam = t / (1 - t) of flow times (N+1,), descending. A first t of 1, pure noise, has no finite lam: it becomes
    0.999, or halfway from the second where that is more."""
    first = t[0] if t[0] < 1 else torch.clamp((1 + t[1]) / 2, min=0.999)
    t = torch.cat([first[None], t[1:]])
    return t / (1 - t)


def flow_lam(t: float) -> float:
    """lam of a flow time to add noise at; near infinity at 1, pure noise. UserError unless t is from 0 to 1."""
    if not 0 <= t <= 1:
        raise UserError(f"a flow model has times from 0 to 1 (timesteps are num_train_timesteps times that), not {t:g}")
    return t / max(1 - t, 1e-8)


def distinct(timesteps: Tensor) -> Tensor:
    """The timesteps (N,), descending; the first of two equal ones moves up by a rounding error, so that the first
    timestep of a run tells its index. UserError if they ascend."""
    gaps = timesteps.diff()
    if (gaps > 0).any():
        raise UserError(f"timesteps must be descending, not {timesteps.tolist()}")
    if not (gaps == 0).any():
        return timesteps
    apart = timesteps.clone()
    for i in reversed(range(len(gaps))):
        apart[i] = torch.maximum(
            apart[i], apart[i + 1] + torch.finfo(apart.dtype).eps * apart[i + 1].abs().clamp(min=1)
        )
    return apart
