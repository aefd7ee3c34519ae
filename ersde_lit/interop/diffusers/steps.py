"""A diffusers scheduler whose steps are rows of a solver's table: what the three of `diffusers_scheduler` share.

A scheduler is the loop of `ersde_lit.solvers.sample` turned inside out: the pipeline calls the model and hands over its
output, so the state between two calls lives here.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ersde_lit.denoisers.preconditioning import PREDICTIONS
from ersde_lit.denoisers.processes import Process
from ersde_lit.errors import UserError
from ersde_lit.interop.diffusers.configuration import taken_over
from ersde_lit.interop.diffusers.levels import distinct
from ersde_lit.solvers import ERSDE, Tableau

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(f"the schedulers for diffusers need diffusers: pip install diffusers ({error})") from None

__all__ = [
    "COMPATIBLE",
    "DDPMSchedulerOutput",
    "Generators",
    "SchedulerMixin",
    "Steps",
    "TableScheduler",
    "only_one",
    "register_to_config",
]

COMPATIBLE = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # whose configurations can be taken over
Generators = torch.Generator | list[torch.Generator] | None


class Steps:
    """The rows of a table in x0, one call a step; what `sample` computes, to rounding.

    The corrector adds to the state that is handed in, so what a pipeline changed in it (an inpainting mask) remains.
    """

    def __init__(self, tableau: Tableau):
        self.r, self.c, self.b = tableau.r.tolist(), tableau.c.tolist(), tableau.b.tolist()
        self.corrector = [] if tableau.corrector is None else tableau.corrector.tolist()
        self.history: deque[Tensor] = deque(maxlen=max(len(row) for row in self.c[:1] + self.corrector[:1]))
        self.predicted: Tensor | None = None
        self.i = 0

    @property
    def adds_noise(self) -> bool:
        """Whether the next step does."""
        return self.b[self.i] > 0

    def __call__(self, y: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        """The next state from y and the x0 predicted of it; noise, standard normal, where `adds_noise`."""
        self.history.appendleft(x0)
        if self.predicted is not None and self.corrector and any(self.corrector[self.i - 1]):
            y = y + self._weighted(self.corrector[self.i - 1]) - self.predicted
        self.predicted = self._weighted(self.c[self.i])
        y = self.r[self.i] * y + self.predicted
        if noise is not None:
            y = y.add(noise, alpha=self.b[self.i])
        self.i += 1
        return y

    def _weighted(self, weights: list[float]) -> Tensor:
        total = self.history[0] * weights[0]
        for weight, x0 in zip(weights[1:], list(self.history)[1:], strict=False):
            if weight:
                total = total.add(x0, alpha=weight)
        return total


class TableScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """What a pipeline asks of a scheduler, given levels and timesteps. A subclass's config has the fields of ERSDE.

    Attributes:
        timesteps: (N,) what the model is told, descending, no two the same.
        sigmas: (N+1,) the noise levels in the subclass's own terms, float32 on the CPU; the last is where steps end.
        num_inference_steps: N, or None before `set_timesteps`.
        step_index, begin_index: the step to come and the first one; None if not known yet.
        order: 1, the calls of the model a step makes; the solver's order is ``config.order``.
    """

    order = 1
    init_noise_sigma: float = 1.0
    process: Process
    prediction: str  # as PREDICTIONS has it
    num_inference_steps: int | None
    if TYPE_CHECKING:
        config: Any  # attributes as well as items

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """What `from_config` and `from_pretrained` make of a configuration; ValueError if it is of another
        noising process."""
        return super().extract_init_dict(taken_over(cls, config_dict, **kwargs), **kwargs)

    def _check_solver(self) -> None:
        if not isinstance(self.config.noise_scale, str):
            raise UserError(f"noise_scale of a scheduler is a name, not {self.config.noise_scale!r}")
        self._solver()

    def _solver(self) -> ERSDE:
        c = self.config
        return ERSDE(c.order, c.noise_scale, c.corrector, c.nodes, c.paper, c.relative)

    def _set_levels(self, lams: Tensor, sigmas: Tensor, timesteps: Tensor, device: Any = None) -> None:
        """lams, sigmas (N+1,) and timesteps (N,), descending: the schedule of the next run."""
        self._lams = lams
        self.sigmas = sigmas.float()
        self.timesteps = distinct(timesteps).to(device)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._steps: Steps | None = None

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Says which step a run begins with, after `set_timesteps`: above 0 for image to image."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The index of a timestep of the schedule; ValueError where it has none such."""
        schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (schedule == torch.as_tensor(timestep, device=schedule.device)).nonzero()
        if not len(found):
            raise UserError(f"timestep {float(timestep):g} is not one of the {len(schedule)} of this schedule")
        return int(found[0])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The model's input of a state: here the state itself."""
        return sample

    def _find_step(self, timestep: float | Tensor | None) -> int:
        if self._step_index is None:
            if self._begin_index is None:
                if timestep is None:
                    raise UserError("the first step of a run needs its timestep, or set_begin_index before it")
                self._step_index = self.index_for_timestep(timestep)
            else:
                self._step_index = self._begin_index
        if self._step_index >= len(self.timesteps):
            raise UserError(f"all {len(self.timesteps)} steps are done: call set_timesteps for another run")
        return self._step_index

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """The state at the next level.

        Args:
            model_output: [B, ...] as ``config.prediction_type`` says.
            timestep: where the model was called; only looked at in the first step of a run without begin_index.
            sample: [B, ...] the state there. Arithmetic is at least in float32, the result has the sample's dtype.
            generator: of the noise, drawn in float32 and where the step adds some; from a list of B, image k's is drawn
                from the k-th alone.
            variance_noise: standard normal noise to use instead.
            return_dict: an output with `prev_sample` and `pred_original_sample` (x0), or a tuple of both.

        Raises:
            ValueError: no set_timesteps, no steps left, or levels at which the noise scale is not valid.
        """
        i, steps = self._begin_step(timestep)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        alpha, next_alpha = self.process.alpha_of_lam(self._lams[i : i + 2]).tolist()
        y = sample.to(dtype) / alpha
        x0 = self._denoised(y, self._lams[i], model_output.to(dtype))
        noise = self._noise(sample, generator, variance_noise) if steps.adds_noise else None
        previous = next_alpha * steps(y, x0, noise)
        return self._end_step(i, previous.to(sample.dtype), x0.to(sample.dtype), return_dict)

    def _begin_step(self, timestep: float | Tensor) -> tuple[int, Steps]:
        """The step's index and the run's rows, which begin with the run."""
        if self.num_inference_steps is None:
            raise UserError("set_timesteps must be called before step")
        i = self._find_step(timestep)
        if self._steps is None:
            with torch.device("cpu"):
                self._steps = Steps(self._solver().tableau(self._lams[i:]))
        return i, self._steps

    def _end_step(
        self, i: int, previous: Tensor, x0: Tensor, return_dict: bool
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        self._step_index = i + 1
        if self._step_index == len(self.timesteps):
            self._steps = None  # with its history
        return DDPMSchedulerOutput(prev_sample=previous, pred_original_sample=x0) if return_dict else (previous, x0)

    @staticmethod
    def _noise(sample: Tensor, generator: Generators, given: Tensor | None) -> Tensor:
        if given is None:
            noise: Tensor = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
            return noise
        return given.to(sample.device, torch.promote_types(sample.dtype, torch.float32))

    def _denoised(self, y: Tensor, lam: Tensor, output: Tensor) -> Tensor:
        """x0 of the state y and the model's output for it, of which a learned variance is dropped."""
        output = output[:, : y.shape[1]]
        c_skip, c_out = PREDICTIONS[self.prediction].coefficients(lam, self._sigma_data, self.process)
        return float(c_skip) * y + float(c_out) * output

    _sigma_data = 0.5  # of prediction "edm" alone

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha (x0 + lam noise)`` at the timesteps (B,), of the schedule or else any the model was trained on. From
        when a pipeline has set begin_index to the end of its run: at the step to come, as img2img and inpainting need
        it.

        Raises:
            ValueError: a timestep of neither.
        """
        alpha, sigma = self._alpha_sigma(timesteps, original_samples)
        dtype = torch.promote_types(original_samples.dtype, torch.float32)
        return (alpha * original_samples.to(dtype) + sigma * noise.to(dtype)).to(original_samples.dtype)

    def _alpha_sigma(self, timesteps: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Each (B, 1, ...), at least in float32."""
        told = torch.as_tensor(timesteps).flatten().tolist()
        coming = self._begin_index if self._step_index is None else self._step_index
        if self._begin_index is not None and coming is not None and coming < len(self.timesteps):
            lams = [float(self._lams[coming])] * len(told)
        else:
            scheduled = dict(zip(self.timesteps.tolist(), self._lams.tolist(), strict=False))
            lams = [scheduled[t] if t in scheduled else self._trained_lam(t) for t in told]
        lam = torch.tensor(lams, dtype=torch.float64).view(-1, *[1] * (sample.ndim - 1))
        alpha = self.process.alpha_of_lam(lam)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        return alpha.to(sample.device, dtype), (alpha * lam).to(sample.device, dtype)

    def _trained_lam(self, timestep: float) -> float:
        """The level at which the model was trained to be told the timestep; ValueError if there is none."""
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def only_one(**given: Any) -> None:
    """ValueError unless just one is not None."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise UserError(f"set_timesteps takes one of {', '.join(given)}, not {' and '.join(names) or 'none'}")
