"""Scheduler with ER-SDE-Solvers for diffusers' flow models."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ersde_lit.denoisers.processes import Flow
from ersde_lit.errors import UserError
from ersde_lit.interop.diffusers.configuration import check_option, only_option
from ersde_lit.interop.diffusers.levels import SPACINGS, flow_lam, flow_lams, shifted
from ersde_lit.interop.diffusers.steps import (
    DDPMSchedulerOutput,
    Generators,
    SchedulerMixin,
    TableScheduler,
    solver_config,
)
from ersde_lit.solvers import ERSDE, Tableau, check_lams, grids
from ersde_lit.solvers.tableau import as_float64

__all__ = ["ERSDEFlowMatchScheduler", "SchedulerMixin"]  # diffusers looks for both in here

SAME_TIME = 1e-6  # times that differ by less are equal: timesteps are float32


class ERSDEFlowMatchScheduler(TableScheduler):
    """Scheduler for flow models (Stable Diffusion 3, Flux), with the levels of FlowMatchEulerDiscreteScheduler.

    A state is x = (1 - t) x0 + t eps, `sigmas` are t, timesteps are ``num_train_timesteps * t``, and the model predicts
    eps - x0. A t of 1, pure noise, has no finite lam; it becomes 0.999, or nearer to 1 where others follow.

    Pipelines of flow models call `step` without their generator, so the noise of the steps, and with it the image,
    depends on the global random state: call `torch.manual_seed` first, or take noise_scale="ode", which adds none.

    Args:
        num_train_timesteps: the timestep of t = 1.
        shift: of t towards 1; with use_dynamic_shifting it follows from `set_timesteps`' mu.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: read by pipelines, which compute mu.
        shift_terminal: stretch the levels so that the last one above 0 is this.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: levels between the first and the last one above 0.
        time_shift_type: mu is the shift's logarithm ("exponential") or the shift ("linear").
    """

    process = Flow()
    prediction = "v"

    @solver_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int | None = 256,
        max_image_seq_len: int | None = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        check_option(self.config, "time_shift_type", "exponential", "linear")
        if invert_sigmas:
            raise UserError("invert_sigmas, for models whose t runs backwards, is not supported")
        self._spacing = only_option(self.config, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
        self._shift = shift
        times = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float64) / num_train_timesteps
        times = times if use_dynamic_shifting else shifted(times, shift)
        self._lowest = float(times[-1])
        self._set(times)
        self.num_inference_steps = None

    @property
    def shift(self) -> float:
        return self._shift

    def set_shift(self, shift: float) -> None:
        self._shift = shift

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """The schedule of the next run, as FlowMatchEulerDiscreteScheduler makes it. With tables only the number of
        calls counts, as pipelines always pass sigmas.

        Args:
            num_inference_steps: N calls of the model. Without sigmas and timesteps, N levels from 1.
            device: of `timesteps`.
            sigmas: (N,) times t from 1, descending, without the final 0, before the shift.
            mu: the shift, if use_dynamic_shifting.
            timesteps: (N,) the model's timesteps, descending, not shifted. Without sigmas, sigmas are ``timesteps /
                num_train_timesteps``, which are shifted, as CogView4 and GLM-Image need it.
        """
        told = None if timesteps is None else as_float64(timesteps).flatten()
        times = None if sigmas is None else as_float64(sigmas).flatten()
        if times is None and told is not None:
            times = told / len(self)
        lengths = {num_inference_steps, *(len(given) for given in (times, told) if given is not None)} - {None}
        if len(lengths) != 1:
            found = f"lengths {sorted(map(str, lengths))}" if lengths else "none"
            raise UserError(f"set_timesteps takes num_inference_steps, sigmas, timesteps of one length, not {found}")
        if (table := self._table(lengths.pop())) is not None:
            self._set_lams(table.lams, device, len(self) * self.process.t_of_lam(table.told), table)
            return
        c = self.config
        if c.use_dynamic_shifting and mu is None:
            raise UserError("use_dynamic_shifting needs mu, the shift of this run")
        shift = self._shift
        if c.use_dynamic_shifting and mu is not None:
            shift = math.exp(mu) if c.time_shift_type == "exponential" else mu
        if times is None:
            grids.check_nfe(num_inference_steps or 0)
            times = torch.linspace(1, self._lowest, num_inference_steps or 0, dtype=torch.float64)
        t = shifted(times, shift)
        if c.shift_terminal:
            t = 1 - (1 - t) * (1 - c.shift_terminal) / (1 - t[-1])
        if self._spacing:
            t = SPACINGS[self._spacing](len(t), lam_min=float(t[-1]), lam_max=float(t[0]), zero=True)[:-1]
        self._set(t, device, told)

    def _set(self, t: Tensor, device: str | torch.device | None = None, told: Tensor | None = None) -> None:
        """Sets times t (N,), descending, above the final 0; told (N,): timesteps other than num_train_timesteps t."""
        lams = check_lams(flow_lams(torch.cat([t, torch.zeros(1).double()])))
        self._set_lams(lams, device, len(self) * self.process.t_of_lam(lams[:-1]) if told is None else told)

    def _set_lams(self, lams: Tensor, device: Any, told: Tensor, table: Tableau | None = None) -> None:
        self._on_schedule: Tensor | bool = True  # which tokens were in all steps of the run
        self._set_levels(lams, self.process.t_of_lam(lams), told.float(), device, table)

    def _trained_lam(self, timestep: float) -> float:
        return flow_lam(timestep / len(self))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        per_token_timesteps: Tensor | None = None,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """The state at the next level, as `TableScheduler.step`; with per_token_timesteps at each token's next level.

        Args:
            per_token_timesteps: [B, T] or [B, 1] ``num_train_timesteps * t`` of tokens [B, T, C], which video pipelines
                pass if some are a condition. model_output is then x0 - eps, as these pipelines change its sign. A token
                steps to the schedule's next level below its own, one at 0 remains. Tokens that were off the schedule
                have no history, so their steps are of order 1, without a corrector.
        """
        if per_token_timesteps is None:
            return super().step(model_output, timestep, sample, generator, variance_noise, return_dict)
        if self._run_table is not None:
            raise UserError("per_token_timesteps need the steps of a solver, and tables have none for them")
        levels = self.process.t_of_lam(self._lams)
        told = as_float64(self.timesteps).clamp(max=len(self) * float(levels[0]))  # 1 as in the schedule
        if not torch.allclose(told, len(self) * levels[:-1], rtol=1e-5):
            raise UserError("per_token_timesteps need a schedule of sigmas alone, with timesteps num_train_timesteps t")
        t = _token_times(per_token_timesteps, sample, len(self)).clamp(max=levels[0])
        i, steps = self._begin_step(timestep)
        self._on_schedule = ((t - levels[i]).abs() < SAME_TIME) & self._on_schedule
        with torch.device("cpu"):
            weights = _token_rows(self._solver(), t, levels)

        dtype = torch.promote_types(sample.dtype, torch.float32)
        of_t, of_state, of_x0, of_noise = (w.unsqueeze(-1).to(sample.device, dtype) for w in (t, *weights))
        state = sample.to(dtype)
        x0 = state + of_t * model_output.to(dtype)
        noise = self._noise(sample, generator, variance_noise) if steps.adds_noise or of_noise.any() else None
        on_schedule = float(1 - levels[i + 1]) * steps(state / float(1 - levels[i]), x0, noise)
        off_schedule = of_state * state + of_x0 * x0
        if noise is not None:
            off_schedule = off_schedule + of_noise * noise
        previous = torch.where(self._on_schedule.unsqueeze(-1).to(sample.device), on_schedule, off_schedule)
        return self._end_step(i, previous.to(sample.dtype), x0.to(sample.dtype), return_dict)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` by the name that flow pipelines call."""
        return self.add_noise(sample, noise, timestep)


def _token_times(timesteps: Tensor, sample: Tensor, steps: int) -> Tensor:
    """Flow times t [B, T], float64 on the CPU, of the tokens' timesteps ``steps * t``, [B, T] or [B, 1]."""
    try:
        t = as_float64(timesteps).expand(sample.shape[:-1]) / steps
    except RuntimeError:
        wanted, found = list(sample.shape[:-1]), list(timesteps.shape)
        raise UserError(f"per_token_timesteps must have the shape {wanted} of the tokens, not {found}") from None
    if not ((t >= 0) & (t <= 1)).all():
        raise UserError(f"per_token_timesteps must be from 0 to {steps}")
    return t


def _token_rows(solver: ERSDE, t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, T] of the state, x0 and noise in a first-order step of each token from its time t [B, T] to the next
    of the schedule's times (N+1,) below it. Tokens at 0 remain."""
    below = torch.where(levels < t.unsqueeze(-1) - SAME_TIME, levels, 0).amax(-1)
    pairs, which = torch.stack([t, below], -1).flatten(0, 1).unique(dim=0, return_inverse=True)
    rows = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(len(pairs), 1)
    for row, pair in zip(rows, pairs, strict=True):
        if pair[0] > SAME_TIME:
            tableau = solver.tableau(pair / (1 - pair))
            row[:] = (1 - pair[1]) * torch.stack([tableau.r[0] / (1 - pair[0]), tableau.c[0, 0], tableau.b[0]])
    state, x0, noise = rows[which].view(*t.shape, 3).unbind(-1)
    return state, x0, noise
