"""Scheduler with ER-SDE-Solvers for diffusers' EDM models."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS
from ersde_lit.denoisers.processes import VE
from ersde_lit.errors import UserError
from ersde_lit.interop.diffusers.configuration import check_one_given, check_option
from ersde_lit.interop.diffusers.steps import SchedulerMixin, TableScheduler, solver_config
from ersde_lit.solvers import check_lams, grids

__all__ = ["ERSDEEDMScheduler", "SchedulerMixin"]  # diffusers looks for both in here


class ERSDEEDMScheduler(TableScheduler):
    """Scheduler for models with EDM's preconditioning (Karras et al. 2022, table 1), as EDMEulerScheduler.

    A state is x = x0 + sigma eps, the model's input is `scale_model_input` of it, ``timesteps = ln(sigma) / 4``, and a
    run starts from ``init_noise_sigma = sqrt(sigma_max^2 + 1)`` times standard normal noise.

    Args:
        sigma_min, sigma_max, sigma_data: range and data of the model.
        sigma_schedule: "karras", of `rho`, or "exponential".
        num_train_timesteps: levels before `set_timesteps`.
        prediction_type: "epsilon", EDM's own F, or "v_prediction", its negative.
        final_sigmas_type: "zero", or "sigma_min": then N + 1 levels from sigma_max end there.
    """

    process = VE()
    prediction = "edm"

    @solver_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
    ) -> None:
        check_option(self.config, "sigma_schedule", "karras", "exponential")
        check_option(self.config, "prediction_type", "epsilon", "v_prediction")
        check_option(self.config, "final_sigmas_type", "zero", "sigma_min")
        self._sigma_data = sigma_data
        self.set_timesteps(num_train_timesteps)
        self.num_inference_steps = None

    @property
    def init_noise_sigma(self) -> float:
        return math.hypot(self.config.sigma_max, 1) if self._run_table is None else super().init_noise_sigma

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """The schedule of the next run: num_inference_steps calls of the model, or `sigmas` (N+1,), descending, with
        the last, usually 0."""
        check_one_given(num_inference_steps=num_inference_steps, sigmas=sigmas)
        c = self.config
        table = self._table(num_inference_steps, sigmas=sigmas)
        if table is not None:
            levels = table.lams
        elif sigmas is None:
            grid = partial(grids.edm, rho=c.rho) if c.sigma_schedule == "karras" else grids.log_uniform
            levels = grid(
                num_inference_steps or 0, lam_min=c.sigma_min, lam_max=c.sigma_max, zero=c.final_sigmas_type == "zero"
            )
        else:
            levels = check_lams(sigmas)
        told = levels[:-1] if table is None else table.told
        self._set_levels(levels, levels, PRECONDITIONINGS["edm"].c_noise(told, told).float(), device, table)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """``x / sqrt(sigma^2 + sigma_data^2)``."""
        lam = self._told[self._find_step(timestep)]
        return sample * float(PRECONDITIONINGS["edm"].c_in(lam, self._sigma_data, self.process))

    def _trained_lam(self, timestep: float) -> float:
        low, high = self.config.sigma_min, self.config.sigma_max
        if not math.log(low) / 4 - 1e-5 <= timestep <= math.log(high) / 4 + 1e-5:  # they are float32
            raise UserError(f"timesteps must be ln(sigma) / 4 of a sigma from {low} to {high}, not {timestep:g}")
        return math.exp(4 * timestep)

    def _denoised(self, y: Tensor, lam: Tensor, output: Tensor) -> Tensor:
        return super()._denoised(y, lam, output if self.config.prediction_type == "epsilon" else -output)
