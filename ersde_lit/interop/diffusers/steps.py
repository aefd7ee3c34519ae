"""Base class of the schedulers for diffusers, whose steps are the rows of a solver's table.

A scheduler is the loop of `ersde_lit.solvers.sample` as an object: the pipeline calls the model and passes its output,
so the state between two calls is kept here.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ersde_lit.denoisers.preconditioning import PREDICTIONS
from ersde_lit.denoisers.processes import Process
from ersde_lit.errors import UserError
from ersde_lit.interop.diffusers.configuration import converted
from ersde_lit.interop.diffusers.levels import distinct
from ersde_lit.interop.diffusers.rows import Steps
from ersde_lit.solvers import ERSDE, SavedTables, Tableau, read_tables
from ersde_lit.solvers.loop import check_shape

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(f"the schedulers for diffusers need diffusers: pip install diffusers ({error})") from None

COMPATIBLE = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # whose configurations can be converted
Generators = torch.Generator | list[torch.Generator] | None


def solver_config(init: Callable[..., None]) -> Callable[..., None]:
    """Registers a constructor's options as the configuration, with the fields of `ERSDE` and `tables`, by keyword,
    added to them. Of a file of tables the configuration keeps the content."""
    own = inspect.signature(init)
    keyword = inspect.Parameter.KEYWORD_ONLY
    solver = {field.name: inspect.Parameter(field.name, keyword, default=field.default) for field in fields(ERSDE)}
    solver["tables"] = inspect.Parameter("tables", keyword, default=None)

    @wraps(init)
    def init_with_solver(self: TableScheduler, *args: Any, **options: Any) -> None:
        if not isinstance(self.config.noise_scale, str):
            raise UserError(f"noise_scale of a scheduler is a name, not {self.config.noise_scale!r}")
        self._tables = None
        self._solver()  # checks the fields
        init(self, *args, **{name: value for name, value in options.items() if name not in solver})
        if (tables := self.config.tables) is not None:
            self._tables = _as_tables(tables)
            self.register_to_config(tables=self._tables.plain())

    signature = own.replace(parameters=[*own.parameters.values(), *solver.values()])
    init_with_solver.__signature__ = signature  # type: ignore[attr-defined]
    registered: Callable[..., None] = register_to_config(init_with_solver)
    return registered


def _as_tables(given: Any) -> SavedTables:
    """Tables, those in a file, or those that plain data hold."""
    if isinstance(given, SavedTables):
        return given
    return read_tables(given) if isinstance(given, str | Path) else SavedTables.of_plain(given)


class TableScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Scheduler with the interface of diffusers' pipelines; a subclass provides noise levels and timesteps.

    With the option `tables`, which is a file of them, `SavedTables` or their content as plain data, a run is by one of
    these, at its noise levels and through the calls that it tells, whatever the other options of solver and levels say;
    it begins with ``init_noise_sigma`` times standard normal noise, at its first level. Where a call is told another
    level than the state's, the state has the alpha of what is told, so that it is the model's input as it stands.

    Attributes:
        timesteps: (N,) the model's timesteps, descending, all different.
        sigmas: (N+1,) the noise levels in the subclass's own terms, float32 on the CPU; the last is the final state's.
        num_inference_steps: N, or None before `set_timesteps`.
        step_index, begin_index: the next step and the first one; None if not known yet.
        order: 1, the model calls of a step; the solver's order is ``config.order``.
    """

    order = 1
    process: Process
    prediction: str  # as PREDICTIONS has it
    num_inference_steps: int | None
    _tables: SavedTables | None  # None while the levels of the model's training are set
    if TYPE_CHECKING:
        config: Any  # attributes as well as items

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration for `from_config` and `from_pretrained`; UserError if its noising process is another."""
        return super().extract_init_dict(converted(cls, config_dict, **kwargs), **kwargs)

    def _solver(self) -> ERSDE:
        return ERSDE(**{f.name: self.config[f.name] for f in fields(ERSDE)})

    def _table(self, num_inference_steps: int | None, **other: Any) -> Tableau | None:
        """The table of a run of so many steps; None without tables; UserError where `other` levels are given."""
        if self._tables is None:
            return None
        if given := [name for name, value in other.items() if value is not None]:
            raise UserError(f"the tables have levels of their own: set num_inference_steps, not {given[0]}")
        table: Tableau = self._tables.tableau(self._tables.grid(num_inference_steps or 0))
        return table

    def _set_levels(
        self, lams: Tensor, sigmas: Tensor, timesteps: Tensor, device: Any = None, table: Tableau | None = None
    ) -> None:
        """Sets the schedule of the next run: lams, sigmas (N+1,) and timesteps (N,), descending; and its table."""
        self._lams = lams
        self._run_table = table
        self._told = lams[:-1] if table is None else table.told
        self._alphas = self.process.alpha_of_lam(torch.cat([self._told, lams[-1:]])).tolist()
        self.sigmas = sigmas.float()
        self.timesteps = distinct(timesteps).to(device)
        self.num_inference_steps = len(self.timesteps)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._steps: Steps | None = None

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the state that a run begins with."""
        return 1.0 if self._run_table is None else self._alphas[0] * float(self._lams[0])

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the first step of a run, after `set_timesteps`: above 0 for image to image."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The index of a timestep of the schedule; UserError if it is none of them."""
        schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (schedule == torch.as_tensor(timestep, device=schedule.device)).nonzero()
        if not len(found):
            raise UserError(f"timestep {float(timestep):g} is not one of the {len(schedule)} of this schedule")
        return int(found[0])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The model's input for a state: the state itself."""
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
            model_output: [B, ...] prediction of ``config.prediction_type``.
            timestep: of the model's call; only used in the first step of a run without begin_index.
            sample: [B, ...] the state. Arithmetic is at least in float32, the result has the sample's dtype.
            generator: of the noise, drawn in float32 where the step adds some; of a list, image k uses the k-th.
            variance_noise: standard normal noise to use instead.
            return_dict: return an object with `prev_sample` and `pred_original_sample` (x0), not a tuple of both.

        Raises:
            UserError: the model's output or the noise is not shaped as the state, or no step is left.
        """
        i, steps = self._begin_step(timestep)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        y = sample.to(dtype) / self._alphas[i]
        x0 = self._denoised(y, self._told[i], model_output.to(dtype))
        noise = self._noise(sample, generator, variance_noise) if steps.adds_noise else None
        previous = self._alphas[i + 1] * steps(y, x0, noise)
        return self._end_step(i, previous.to(sample.dtype), x0.to(sample.dtype), return_dict)

    def _begin_step(self, timestep: float | Tensor) -> tuple[int, Steps]:
        """The step's index and the run's steps, made at its beginning."""
        if self.num_inference_steps is None:
            raise UserError("set_timesteps must be called before step")
        i = self._find_step(timestep)
        if self._steps is None:
            if self._run_table is not None and i:
                raise UserError(f"a run by a table has no other beginning than its first level, and not step {i}")
            with torch.device("cpu"):
                self._steps = Steps(self._run_table or self._solver().tableau(self._lams[i:]))
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
        given = check_shape("variance_noise", given, sample)
        return given.to(sample.device, torch.promote_types(sample.dtype, torch.float32))

    def _denoised(self, y: Tensor, lam: Tensor, output: Tensor) -> Tensor:
        """x0 of the state y and the model's output, whose learned variance, if any, is dropped."""
        output = check_shape("model_output", output[:, : y.shape[1]], y)
        c_skip, c_out = PREDICTIONS[self.prediction].coefficients(lam, self._sigma_data, self.process)
        return float(c_skip) * y + float(c_out) * output

    _sigma_data = 0.5  # of prediction "edm" alone

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha (x0 + lam noise)`` at the timesteps (B,), of the schedule or else of the model's training. In a run
        with a begin_index, at its next step instead, as img2img and inpainting need it."""
        alpha, sigma = self._alpha_sigma(timesteps, original_samples)
        dtype = torch.promote_types(original_samples.dtype, torch.float32)
        return (alpha * original_samples.to(dtype) + sigma * noise.to(dtype)).to(original_samples.dtype)

    def _alpha_sigma(self, timesteps: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Each (B, 1, ...), at least in float32."""
        told = torch.as_tensor(timesteps).flatten().tolist()
        coming = self._begin_index if self._step_index is None else self._step_index
        if self._begin_index is not None and coming is not None and coming < len(self.timesteps):
            steps = [(self._alphas[coming], float(self._lams[coming]))] * len(told)
        else:
            pairs = zip(self._alphas, self._lams.tolist(), strict=True)
            scheduled = dict(zip(self.timesteps.tolist(), pairs, strict=False))
            steps = [scheduled[t] if t in scheduled else self._trained_step(t) for t in told]
        alpha, lam = torch.tensor(steps, dtype=torch.float64).view(-1, 2, *[1] * (sample.ndim - 1)).unbind(1)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        return alpha.to(sample.device, dtype), (alpha * lam).to(sample.device, dtype)

    def _trained_step(self, timestep: float) -> tuple[float, float]:
        """alpha and level with which the model was trained at a timestep."""
        lam = self._trained_lam(timestep)
        return float(self.process.alpha_of_lam(torch.tensor(lam, dtype=torch.float64))), lam

    def _trained_lam(self, timestep: float) -> float:
        """The level with which the model was trained at a timestep; UserError if there is none."""
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)
