"""An ER-SDE scheduler for diffusers' flow models; see `diffusers_scheduler`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ersde_lit.denoisers.processes import Flow
from ersde_lit.interop.diffusers_configuration import one_of, the_one
from ersde_lit.interop.diffusers_levels import SPACINGS, flow_lams, shifted
from ersde_lit.interop.diffusers_steps import (
    SchedulerMixin,
    TableScheduler,
    as_levels,
    only_one,
    register_to_config,
)
from ersde_lit.solvers import check_lams, grids

__all__ = ["ERSDEFlowMatchScheduler", "SchedulerMixin"]  # a pipeline that loads the one from here looks for the other


class ERSDEFlowMatchScheduler(TableScheduler):
    """For flow models (Stable Diffusion 3, Flux): FlowMatchEulerDiscreteScheduler's twin, with its levels.

    A state is x = (1 - t) x0 + t eps, `sigmas` are t, timesteps are ``num_train_timesteps * t``, and the model predicts
    eps - x0. A t of 1, pure noise, has no finite lam; it becomes 0.999, or nearer to 1 where others follow.

    Pipelines of flow models call `step` without their generator, so the noise of the steps, and with it the image,
    depends on the global random state: call `torch.manual_seed` first, or take noise_scale="ode", which adds none.

    Args:
        num_train_timesteps: what t = 1 is told as.
        shift: of t towards 1; dynamic with use_dynamic_shifting, where `set_timesteps` is given mu.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: read by pipelines, which make mu of them.
        shift_terminal: stretch the levels so that the last but 0 is this.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: levels between the first and the last but 0.
        time_shift_type: mu is the shift's logarithm ("exponential") or the shift ("linear").
        order, noise_scale, corrector, nodes, relative, paper: fields of `ersde_lit.solvers.ERSDE`; noise_scale a name.

    Raises:
        ValueError: options that are unknown or do not go together.
    """

    process = Flow()
    prediction = "v"

    @register_to_config
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
        order: int = 3,
        noise_scale: str = "er_sde_5",
        corrector: int | None = None,
        nodes: str | float = "lam",
        relative: bool = False,
        paper: bool = False,
    ) -> None:
        self._check_solver()
        one_of(self.config, "time_shift_type", "exponential", "linear")
        if invert_sigmas:
            raise ValueError("invert_sigmas, for models whose t runs backwards, is not known here")
        self._spacing = the_one(self.config, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
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
        """The schedule of the next run.

        Args:
            num_inference_steps: N calls of the model. One of this, sigmas and timesteps is given.
            device: of `timesteps`.
            sigmas: (N,) times t from 1, descending, without the 0 that follows; to be shifted.
            mu: the shift, if use_dynamic_shifting.
            timesteps: (N,) ``num_train_timesteps * t``, descending; not shifted.
        """
        only_one(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        c = self.config
        if c.use_dynamic_shifting and mu is None:
            raise ValueError("use_dynamic_shifting needs mu, the shift of this run")
        shift = self._shift
        if c.use_dynamic_shifting and mu is not None:
            shift = math.exp(mu) if c.time_shift_type == "exponential" else mu
        if timesteps is not None:
            t = as_levels(timesteps) / len(self)
        else:
            if sigmas is None:
                grids.check_nfe(num_inference_steps or 0)
                sigmas = torch.linspace(1, self._lowest, num_inference_steps or 0, dtype=torch.float64)
            t = shifted(as_levels(sigmas), shift)
            if c.shift_terminal:
                t = 1 - (1 - t) * (1 - c.shift_terminal) / (1 - t[-1])
            if self._spacing:
                t = SPACINGS[self._spacing](len(t), lam_min=float(t[-1]), lam_max=float(t[0]), zero=True)[:-1]
        self._set(t, device)
        self.num_inference_steps = len(self.timesteps)

    def _set(self, t: Tensor, device: str | torch.device | None = None) -> None:
        """t (N,), descending, above 0, where the last step ends."""
        lams = check_lams(flow_lams(torch.cat([t, torch.zeros(1).double()])))
        levels = self.process.t_of_lam(lams)
        self._set_levels(lams, levels, (len(self) * levels[:-1]).float(), device)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` by the name that flow pipelines call."""
        return self.add_noise(sample, noise, timestep)
