"""Heun sampler of EDM: two denoiser calls per step, with optional churn."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import grids
from ersde_lit.solvers.checks import is_interval, is_number
from ersde_lit.solvers.grids import Grid
from ersde_lit.solvers.loop import Callback, Denoise, check_shape, raise_if_not_finite
from ersde_lit.solvers.sampler import Noise, Sampler, adapt_grid


@dataclass(frozen=True)
class Heun(Sampler):
    """EDM's sampler, Algorithm 2 of Karras et al. 2022, https://arxiv.org/abs/2206.00364; without churn, Algorithm 1.

    Each of n steps, from l to l_t, first raises the noise level to ``l' = l (1 + gamma)`` with fresh noise, where
    ``gamma = min(churn / n, sqrt(2) - 1)`` if s_min <= l <= s_max and 0 if not. Then, with ``d(y, l) = (y - x0) / l``,

        e = y' + (l_t - l') d(y', l'),        y_t = y' + (l_t - l') (d(y', l') + d(e, l_t)) / 2

    or y_t = e = x0 where l_t = 0. So n steps make 2n - 1 calls. The order is 2; without churn no noise is drawn.

    Attributes:
        grid: n steps -> lams (n+1,), the last 0; fitted to the denoiser as by `TableSampler`. A level raised by churn
            stays within the denoiser's range too, and on its levels if it has such.
        churn: S_churn, at least 0. For ImageNet-64 the paper has 40, with s_min 0.05, s_max 50 and s_noise 1.003.
        s_min, s_max: the lams between which there is churn.
        s_noise: standard deviation of the fresh noise; a little above 1 makes up for a denoiser that removes too much.
    """

    calls_a_step = 2
    grid: Grid = grids.edm
    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("churn", "s_noise"):
            if not is_number(value := getattr(self, name), 0):
                raise UserError(f"{name} of Heun must be finite and at least 0, not {value!r}")
        if not is_interval((self.s_min, self.s_max)):
            raise UserError(f"Heun needs 0 <= s_min <= s_max, not {self.s_min!r} and {self.s_max!r}")

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoise, noise: Noise, nfe: int, labels: Tensor | None = None, callback: Callback | None = None
    ) -> Tensor:
        with torch.device("cpu"):
            lams = adapt_grid(self.grid((self.calls(nfe) + 1) // 2), denoiser)
        if lams[-1] != 0:
            raise UserError(f"the grid of Heun must end in 0, not {lams[-1]:.6g}")
        raised = self._raised(lams, denoiser)
        start = noise.initial()
        y = start.to(torch.promote_types(start.dtype, torch.float32)) * float(lams[0])
        condition = {} if labels is None else {"labels": labels}
        totals: list[Tensor] = []

        def slope(y: Tensor, lam: Tensor, call: int) -> Tensor:
            x0 = check_shape("x0", denoiser(y, lam, **condition), y)
            if callback is not None:
                callback(call, lam, y, x0)
            d = (y - x0.to(y.dtype)) / lam
            totals.append(d.sum())
            return d

        levels = torch.stack([lams[:-1], raised, lams[1:]], 1)
        for i, (old, high, new) in enumerate(levels.tolist()):
            _, at_high, at_new = levels[i].to(y.dtype)
            if high > old:
                y = y.add(check_shape("noise", noise.step(i), y), alpha=self.s_noise * math.sqrt(high**2 - old**2))
            d = slope(y, at_high, 2 * i)
            if new > 0:
                d = (d + slope(y.add(d, alpha=new - high), at_new, 2 * i + 1)) / 2
            y = y.add(d, alpha=new - high)

        raise_if_not_finite(totals, lams, calls_a_step=2)
        return y

    def _raised(self, lams: Tensor, denoiser: Denoise) -> Tensor:
        """Noise levels after churn, for each level but the last."""
        lams = lams[:-1]
        gamma = min(self.churn / len(lams), math.sqrt(2) - 1)
        raised = torch.where((lams >= self.s_min) & (lams <= self.s_max), lams * (1 + gamma), lams)
        raised = raised.clamp(max=float(getattr(denoiser, "lam_max", math.inf)))
        if (known := getattr(denoiser, "levels", None)) is not None:
            known = known.to(raised)
            raised = known[(raised[:, None] - known).abs().argmin(1)]
        return raised
