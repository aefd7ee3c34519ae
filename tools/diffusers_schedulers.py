"""diffusers' schedulers on any grid of ours, for scripts and tests that compare with them."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import diffusers
import torch
from torch import Tensor

_dpm = partial(diffusers.DPMSolverMultistepScheduler, prediction_type="sample", final_sigmas_type="zero")
_unipc = partial(diffusers.UniPCMultistepScheduler, prediction_type="sample", final_sigmas_type="zero")
_deis = partial(diffusers.DEISMultistepScheduler, prediction_type="sample")
_sa = partial(
    diffusers.SASolverScheduler,
    prediction_type="sample",
    predictor_order=3,
    corrector_order=4,
    tau_func=lambda t: torch.tensor(float(0.72 <= t <= 25.1)),  # `run` has lams for timesteps
)

# By the name in the literature, with the settings that are those of our solvers' defaults.
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "DDIM": diffusers.EulerDiscreteScheduler,
    "DDPM": diffusers.EulerAncestralDiscreteScheduler,
    "DPM-Solver++(2M)": _dpm,
    "DPM-Solver++(2M heun)": partial(_dpm, solver_type="heun"),
    "DPM-Solver++(3M)": partial(_dpm, solver_order=3),
    "SDE-DPM-Solver++(2M)": partial(_dpm, algorithm_type="sde-dpmsolver++"),
    "UniPC-2": _unipc,
    "UniPC-3": partial(_unipc, solver_order=3),
    "SA-Solver": _sa,
    "iPNDM-4": diffusers.IPNDMScheduler,
    "DEIS-2": partial(_deis, solver_order=2),
    "DEIS-3": partial(_deis, solver_order=3),
    "EDM Heun": diffusers.HeunDiscreteScheduler,
}


def run(scheduler: Any, denoiser: Callable[[Tensor, Tensor], Tensor], lams: Tensor, y: Tensor, noise: Any) -> Tensor:
    """From y at ``lams[0]`` to x0: the scheduler, made to step through `lams`, with the noise of ``noise.step(i)``.

    Those that predict "epsilon" here step in y, the others in alpha y. The last step, into 0, returns the denoiser's
    output whatever the scheduler; some of diffusers' are NaN there.
    """
    prediction = scheduler.config.get("prediction_type", "v")  # iPNDM knows v alone
    scheduler.set_timesteps(len(lams) - 1)
    if scheduler.order == 2:  # Heun: two calls at each level but the first
        lams = torch.cat([lams[:1], lams[1:-1].repeat_interleave(2), lams[-1:]])
    alphas = torch.ones_like(lams) if prediction == "epsilon" else (1 + lams**2).rsqrt()
    scheduler.sigmas, scheduler.alphas, scheduler.betas = lams, alphas, lams * alphas
    scheduler.timesteps = lams[:-1]
    scheduler.is_scale_input_called = True  # by us: y / alpha
    module = sys.modules[type(scheduler).__module__]
    x = alphas[0] * y
    for i, (t, alpha, lam) in enumerate(zip(scheduler.timesteps, alphas, lams, strict=False)):
        x0 = denoiser(x / alpha, lam)
        if lams[i + 1] == 0:
            break
        eps = (x / alpha - x0) / lam
        output = {"sample": x0, "epsilon": eps, "v": alpha * (eps - lam * x0)}[prediction]
        with mock.patch.object(module, "randn_tensor", lambda *_, i=i, **__: noise.step(i), create=True):
            x = scheduler.step(output, t, x).prev_sample
    return x0
