"""Scheduler with ER-SDE-Solvers for diffusers' variance preserving models; the guide is in `ersde_lit.interop`.

The options of this one and of those for EDM's and flow models include, by keyword, the fields of
`ersde_lit.solvers.ERSDE` (noise_scale must be a name here), or in place of them `tables`; they compute what
`ersde_lit.solvers.sample` does with the table. `from_config` accepts the configuration of any scheduler of diffusers
with the same noising process; others, and options that are not known to keep it, are refused by name. Needs diffusers.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ersde_lit.denoisers.processes import VP, Flow
from ersde_lit.errors import UserError
from ersde_lit.interop.diffusers.configuration import check_one_given, check_option, only_option
from ersde_lit.interop.diffusers.edm_scheduler import ERSDEEDMScheduler
from ersde_lit.interop.diffusers.flow_scheduler import ERSDEFlowMatchScheduler
from ersde_lit.interop.diffusers.levels import (
    SPACINGS,
    flow_lam,
    flow_lams,
    shifted,
    spaced_timesteps,
    trained_lams,
)
from ersde_lit.interop.diffusers.steps import COMPATIBLE, SchedulerMixin, TableScheduler, solver_config
from ersde_lit.solvers import Tableau, check_lams, grids
from ersde_lit.solvers.tableau import SAME_LEVEL, as_float64

__all__ = [
    "ERSDEEDMScheduler",
    "ERSDEFlowMatchScheduler",
    "ERSDEScheduler",
    "SchedulerMixin",
]  # diffusers looks for it here

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "v"}


class ERSDEScheduler(TableScheduler):
    """Scheduler for models of a discrete VP process, and flow models with the same interface (`use_flow_sigmas`).

    A state is x = alpha (x0 + lam eps) with alpha^2 = 1 / (1 + lam^2), a run starts from standard normal noise,
    `sigmas` are lams: as in Stable Diffusion's and DDPM's pipelines. Timesteps are those of
    DPMSolverMultistepScheduler with the same options, but all levels differ: where that one would end in sigma_min
    twice, or repeat a timestep, the levels are spread.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr,
            snr_shift_scale: the process.
        prediction_type: "epsilon", "sample" (x0), "v_prediction" or, with use_flow_sigmas, "flow_prediction".
        thresholding, dynamic_thresholding_ratio, sample_max_value: of x0 (Saharia et al. 2022, section 2.3).
        clip_sample, clip_sample_range: clamp x0 to plus or minus this, unless thresholding.
        use_karras_sigmas, use_exponential_sigmas, use_lu_lambdas, use_beta_sigmas: levels between the process' ends,
            in place of timestep_spacing; timesteps are the nearest integers, or exact floats if two are equal.
        use_flow_sigmas, flow_shift: x = (1 - t) x0 + t eps; `sigmas` are t, timesteps ``num_train_timesteps * t``.
        final_sigmas_type: the end of the last step, "zero" or "sigma_min", the process' lowest level.
        lambda_min_clipped: omit the levels whose -ln lam is below.
        timestep_spacing, steps_offset: "linspace", "leading" or "trailing".
    """

    _compatibles = COMPATIBLE

    @solver_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -math.inf,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
    ) -> None:
        check_option(self.config, "final_sigmas_type", "zero", "sigma_min")
        check_option(self.config, "prediction_type", *_PREDICTIONS)
        if (prediction_type, use_flow_sigmas) in (("v_prediction", True), ("flow_prediction", False)):
            raise UserError(f"prediction_type {prediction_type} does not go with use_flow_sigmas={use_flow_sigmas}")
        self._spacing = only_option(self.config, *SPACINGS, "use_flow_sigmas")
        self.process = Flow() if use_flow_sigmas else VP()
        self.prediction = _PREDICTIONS[prediction_type]
        if use_flow_sigmas:
            times = torch.arange(1, num_train_timesteps, dtype=torch.float64) / num_train_timesteps
            self._trained = shifted(times, flow_shift)
        else:
            self._trained = trained_lams(self.config)
            self.alphas_cumprod = (1 / (1 + self._trained**2)).float()
        self._set(torch.cat([self._trained.flip(0), torch.zeros(1).double()]))
        self.num_inference_steps = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """The schedule of the next run, by one of the three.

        Args:
            num_inference_steps: N calls of the model, at most as many as it has levels.
            device: of `timesteps`.
            timesteps: (N,) of the process, descending; between two, levels are interpolated.
            sigmas: (N+1,) descending, with the last, usually 0, as EulerDiscreteScheduler takes them.
            mu: must be None: only ERSDEFlowMatchScheduler can shift by it.
        """
        if mu is not None:
            raise UserError(f"ERSDEScheduler cannot be shifted by mu={mu}: use ERSDEFlowMatchScheduler, or flow_shift")
        check_one_given(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if (table := self._table(num_inference_steps, timesteps=timesteps, sigmas=sigmas)) is not None:
            self._set_lams(table.lams, device, table)
            return
        if sigmas is not None:
            levels = as_float64(sigmas).flatten()
        elif timesteps is not None:
            levels = self._ended(self._levels_at(as_float64(timesteps).flatten()))
        elif num_inference_steps is not None and self._spacing:
            levels = self._spread(num_inference_steps)
        else:
            least = (-self._trained.log() >= self.config.lambda_min_clipped).sum()
            told = spaced_timesteps(
                self.config.timestep_spacing, num_inference_steps or 0, int(least), self.config.steps_offset
            )
            levels = self._ended(self._trained[told])
        self._set(levels, device)

    def _set(self, levels: Tensor, device: str | torch.device | None = None) -> None:
        self._set_lams(flow_lams(levels) if self.config.use_flow_sigmas else levels, device)

    def _set_lams(self, lams: Tensor, device: str | torch.device | None, table: Tableau | None = None) -> None:
        lams = check_lams(lams)
        told = lams[:-1] if table is None else table.told
        if self.config.use_flow_sigmas:
            times = (len(self) * self.process.t_of_lam(told)).float()
            self._set_levels(lams, self.process.t_of_lam(lams), times, device, table)
            return
        low, high = self._trained[[0, -1]].tolist()
        if table is not None and (
            float(told.max()) > high * (1 + SAME_LEVEL) or float(told.min()) * (1 + SAME_LEVEL) < low
        ):
            raise UserError(
                f"the table of {table.nfe} calls tells the model levels from {told.max():.5g} to {told.min():.5g}, and "
                f"it was trained from {high:.5g} to {low:.5g}: it was learned for another model"
            )
        position = np.interp(told.log().numpy(), self._trained.log().numpy(), np.arange(len(self._trained)))
        exact = torch.from_numpy(position)
        times = exact.round().long()
        if (times.diff() == 0).any():  # then exact times between the timesteps
            times = exact.float()
        self._set_levels(lams, lams, times, device, table)

    def _levels_at(self, timesteps: Tensor) -> Tensor:
        if self.config.use_flow_sigmas:
            return timesteps / len(self)
        if not ((timesteps >= 0) & (timesteps <= len(self._trained) - 1)).all():
            raise UserError(f"timesteps must be from 0 to {len(self._trained) - 1}, not {timesteps.tolist()}")
        below, above = self._trained[timesteps.floor().long()], self._trained[timesteps.ceil().long()]
        return below * (above / below) ** timesteps.frac()

    def _trained_lam(self, timestep: float) -> float:
        if self.config.use_flow_sigmas:
            return flow_lam(timestep / len(self))
        return float(self._levels_at(torch.tensor(timestep, dtype=torch.float64)))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of prediction_type "v_prediction", ``alpha noise - sigma sample``, or "flow_prediction", ``noise -
        sample``, for `add_noise` of these."""
        if self.config.use_flow_sigmas:
            return noise - sample
        alpha, sigma = self._alpha_sigma(timesteps, sample)
        return (alpha * noise - sigma * sample).to(sample.dtype)

    def _ended(self, levels: Tensor) -> Tensor:
        """The levels with the end of the last step, which is 0 after the lowest level of all."""
        low = self._trained[:1]
        return torch.cat([levels, 0 * low if self.config.final_sigmas_type == "zero" or levels[-1] <= low else low])

    def _spread(self, n: int) -> Tensor:
        """N + 1 levels from the process' highest one, between its timesteps."""
        zero = self.config.final_sigmas_type == "zero"
        low, high = self._trained[[0, -1]].tolist()
        if self._spacing != "use_flow_sigmas":
            return SPACINGS[self._spacing](n, lam_min=low, lam_max=high, zero=zero)
        grids.check_nfe(n)
        times = torch.linspace(1 - 1 / len(self), 0 if zero else 1 / len(self), n + 1, dtype=torch.float64)
        return shifted(times, self.config.flow_shift)

    def _denoised(self, y: Tensor, lam: Tensor, output: Tensor) -> Tensor:
        x0 = super()._denoised(y, lam, output)
        if self.config.thresholding:
            size = x0.flatten(1).abs().quantile(self.config.dynamic_thresholding_ratio, dim=1)
            size = size.clamp(1, self.config.sample_max_value).view(-1, *[1] * (x0.ndim - 1))
            x0 = x0.clamp(-size, size) / size
        elif self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x0
