"""Samplers that run diffusers' schedulers and k-diffusion's functions on our grids and our noise, for comparison."""

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import grids
from ersde_lit.solvers.grids import Grid, check_nfe
from ersde_lit.solvers.loop import Callback, Denoise, StepNoise, raise_if_not_finite
from ersde_lit.solvers.sa_solver import SASolver
from ersde_lit.solvers.sampler import Noise, Sampler, adapt_grid

# The prediction each is given: eps for those that step in y, x0 or v for those that step in x = alpha y.
_EPS, _SAMPLE, _V = "epsilon", "sample", "v"
_SCHEDULERS = {
    "EulerDiscreteScheduler": _EPS,
    "EulerAncestralDiscreteScheduler": _EPS,
    "HeunDiscreteScheduler": _EPS,
    "DPMSolverMultistepScheduler": _SAMPLE,
    "UniPCMultistepScheduler": _SAMPLE,
    "DEISMultistepScheduler": _SAMPLE,
    "SASolverScheduler": _SAMPLE,
    "IPNDMScheduler": _V,
}
_K_DIFFUSION_OURS = (
    *("model", "x", "sigmas", "extra_args", "callback", "disable", "noise_sampler"),
    *("s_churn", "s_tmin", "s_tmax"),
)
_CALLS = {
    **dict.fromkeys(["euler", "euler_ancestral", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"], 1),
    **dict.fromkeys(["heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"], 2),
}


class _Rival(Sampler):
    """Sampler that runs other code on our grid; `_run` steps from y at ``lams[0]`` to ``lams[-1]``."""

    grid: Grid

    def _run(self, model: "_Model", lams: Tensor, y: Tensor, noise: Noise) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoise, noise: Noise, nfe: int, labels: Tensor | None = None, callback: Callback | None = None
    ) -> Tensor:
        check_nfe(nfe)
        two = self.calls_a_step == 2
        with torch.device("cpu"):
            lams = adapt_grid(self.grid((nfe + 1) // 2 if two else nfe), denoiser)
        if two and lams[-1] > 0:
            raise UserError(f"a sampler of two calls a step needs a grid that ends in 0, not {lams[-1]:.6g}")
        model = _Model(denoiser, labels, callback)
        y = self._run(model, lams, noise.initial() * float(lams[0]), noise)
        raise_if_not_finite(model.totals, model.lams)
        return y


@dataclass(frozen=True)
class DiffusersSampler(_Rival):
    """Sampler that steps a scheduler of diffusers along our grid, with our noise in place of its generator's.

    The model's output is given as the prediction that the scheduler converts least, and lams as its timesteps. A last
    step to 0 returns x0, where some of diffusers' give NaN.

    Attributes:
        scheduler: name of its class: EulerDiscreteScheduler (DDIM), EulerAncestralDiscreteScheduler (DDPM),
            HeunDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler,
            SASolverScheduler (with the noise window of `ersde_lit.solvers.SASolver`) or IPNDMScheduler.
        config: arguments of the class but for its levels and prediction, e.g. ``{"solver_order": 3}``.
        grid: n steps -> lams, adapted to the denoiser as by `TableSampler`.
    """

    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)
    grid: Grid = grids.edm

    def __post_init__(self) -> None:
        if self.scheduler not in _SCHEDULERS:
            raise UserError(f"DiffusersSampler runs {', '.join(_SCHEDULERS)}, not {self.scheduler}")
        if importlib.util.find_spec("diffusers") is None:
            raise UserError("DiffusersSampler needs diffusers: pip install diffusers")
        _check_options(self.scheduler, self._class, self.config, ours=("prediction_type",))

    @property
    def _class(self) -> Any:
        return getattr(importlib.import_module("diffusers"), self.scheduler)

    @property
    def calls_a_step(self) -> int:  # type: ignore[override]
        return 2 if self.scheduler == "HeunDiscreteScheduler" else 1

    def _run(self, model: "_Model", lams: Tensor, y: Tensor, noise: Noise) -> Tensor:
        if self.calls_a_step == 2:  # two calls at each level but the first
            lams = torch.cat([lams[:1], lams[1:-1].repeat_interleave(2), lams[-1:]])
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # numpy functions of tensors
            return _steps(self._scheduler_at(lams), _SCHEDULERS[self.scheduler], model, lams, y, noise)

    def _scheduler_at(self, lams: Tensor) -> Any:
        """The scheduler, with its noise levels replaced by lams."""
        config = dict(self.config)
        if _SCHEDULERS[self.scheduler] != _V:
            config["prediction_type"] = _SCHEDULERS[self.scheduler]
        if "final_sigmas_type" in inspect.signature(self._class).parameters:
            config.setdefault("final_sigmas_type", "zero" if lams[-1] == 0 else "sigma_min")  # orders of the last steps
        if self.scheduler == "SASolverScheduler":
            low, high = SASolver().window
            config.setdefault("tau_func", lambda lam: torch.tensor(float(low <= lam <= high)))
        scheduler = self._class(**config)
        scheduler.set_timesteps(len(lams) - 1 if scheduler.order == 1 else len(lams) // 2)
        alphas = torch.ones_like(lams) if _SCHEDULERS[self.scheduler] == _EPS else (1 + lams**2).rsqrt()
        scheduler.sigmas, scheduler.alphas, scheduler.betas = lams, alphas, lams * alphas
        scheduler.timesteps = lams[:-1]
        scheduler.is_scale_input_called = True  # y is x / alpha
        return scheduler


@dataclass(frozen=True)
class KDiffusionSampler(_Rival):
    """Sampler that calls a function of k-diffusion on our grid, with our noise.

    Only k-diffusion's `sampling` module is loaded: ``pip install --no-deps k-diffusion`` with torchsde and torchdiffeq.

    Attributes:
        function: euler, euler_ancestral, lms, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, or with two calls a step heun,
            dpm_2, dpm_2_ancestral, dpmpp_2s_ancestral, dpmpp_sde; with or without "sample_" before it.
        options: arguments of the function but for churn, whose noise would not be ours, e.g. ``{"eta": 0.5}``.
        grid: n steps -> lams, adapted to the denoiser as by `TableSampler`.
    """

    function: str
    options: dict[str, Any] = field(default_factory=dict)
    grid: Grid = grids.edm

    def __post_init__(self) -> None:
        if self._name not in _CALLS:
            raise UserError(f"KDiffusionSampler runs {', '.join(_CALLS)}, not {self.function}")
        _check_options(self.function, self._sample, self.options, ours=_K_DIFFUSION_OURS)

    @property
    def _name(self) -> str:
        return self.function.removeprefix("sample_")

    @property
    def _sample(self) -> Any:
        return getattr(k_diffusion_module("sampling"), f"sample_{self._name}")

    @property
    def calls_a_step(self) -> int:  # type: ignore[override]
        return _CALLS[self._name]

    def _run(self, model: "_Model", lams: Tensor, y: Tensor, noise: Noise) -> Tensor:
        options = dict(self.options)
        if "noise_sampler" in inspect.signature(self._sample).parameters:
            options["noise_sampler"] = _Increments(noise)
        x0: Tensor = self._sample(lambda x, sigma: model(x, sigma[0].cpu()), y, lams.to(y), disable=True, **options)
        return x0


class _Increments:
    """Noise sampler of standardised increments of one Brownian motion over lam, as k-diffusion's own.

    An increment over a stretch that contains the one drawn before (dpmpp_sde's second of a step) is correlated with it.
    """

    def __init__(self, noise: StepNoise):
        self.noise, self.draws = noise, count()
        self.last: tuple[float, float, Tensor] | None = None

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        start, end = float(sigma), float(sigma_next)
        increment = self.noise.step(next(self.draws))
        if self.last is not None and self.last[0] == start:
            known = (start - self.last[1]) / (start - end)
            increment = known**0.5 * self.last[2] + (1 - known) ** 0.5 * increment
        self.last = start, end, increment
        return increment


class _Model:
    """Denoiser called with levels as 0-dim host tensors; reports each call and keeps the sum of x0 to check later."""

    def __init__(self, denoiser: Denoise, labels: Tensor | None, callback: Callback | None):
        self.denoiser, self.callback = denoiser, callback
        self.condition = {} if labels is None else {"labels": labels}
        self.totals: list[Tensor] = []
        self.lams: list[Tensor] = []

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        x0 = self.denoiser(y, lam, **self.condition)
        if self.callback is not None:
            self.callback(len(self.lams), lam, y, x0)
        self.totals.append(x0.sum())
        self.lams.append(lam)
        return x0.to(y.dtype)


def _steps(scheduler: Any, prediction: str, model: _Model, lams: Tensor, y: Tensor, noise: StepNoise) -> Tensor:
    """The loop of a pipeline, from y at ``lams[0]`` to y at ``lams[-1]``."""
    alphas, step = scheduler.alphas, _step_with(scheduler, lambda *_, **__: noise.step(i))  # of the loop
    x = alphas[0] * y
    for i, (alpha, lam) in enumerate(zip(alphas[:-1], lams[:-1], strict=True)):
        x0 = model(x / alpha, lam.to(y.dtype))
        if lams[i + 1] == 0:
            return x0
        eps = (x / alpha - x0) / lam
        output = {_SAMPLE: x0, _EPS: eps, _V: alpha * (eps - lam * x0)}[prediction]
        x = step(output, scheduler.timesteps[i], x).prev_sample
    return x / alphas[-1]


def _step_with(scheduler: Any, draw: Callable[..., Tensor]) -> Callable[..., Any]:
    """The scheduler's `step` with `draw` in place of `randn_tensor`: a copy, so diffusers is not changed."""
    own = type(scheduler).step
    names = {**own.__globals__, "randn_tensor": draw}
    return partial(FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__), scheduler)


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any], ours: tuple[str, ...]) -> None:
    known = [p for p in inspect.signature(function).parameters if p not in ours]
    for option in options:
        if option not in known:
            raise UserError(f"{name} takes no {option!r} here, only {', '.join(known) or 'nothing'}")


def k_diffusion_module(name: str) -> ModuleType:
    """A module of k-diffusion, imported without its package, which would need the dependencies of training too."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("k-diffusion is not installed: pip install --no-deps k-diffusion, and torchsde torchdiffeq")
    alone = sys.modules.setdefault("_k_diffusion_alone", ModuleType("_k_diffusion_alone"))
    alone.__path__ = list(spec.submodule_search_locations)
    try:
        return importlib.import_module(f"_k_diffusion_alone.{name}")
    except ImportError as error:
        raise UserError(f"k-diffusion's {name} cannot be imported, {error}: pip install torchsde torchdiffeq") from None
