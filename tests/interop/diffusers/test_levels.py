"""Levels and timesteps are those of diffusers' own schedulers."""

from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from ersde_lit.denoisers.processes import Cosine  # noqa: E402
from ersde_lit.interop.diffusers.scheduler import (  # noqa: E402
    ERSDEEDMScheduler,
    ERSDEFlowMatchScheduler,
    ERSDEScheduler,
)
from ersde_lit.solvers import grids  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")  # numpy functions of tensors


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("n", [1, 7, 50])
def test_timesteps_are_those_of_dpm_solver(spacing: str, final: str, n: int) -> None:
    config = {"timestep_spacing": spacing, "final_sigmas_type": final, "steps_offset": 1}
    config |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    check_levels(ERSDEScheduler(**config), diffusers.DPMSolverMultistepScheduler(**config), n)


@pytest.mark.parametrize("spread", ["karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_spread_sigmas_are_those_of_dpm_solver(spread: str, schedule: str) -> None:
    """Timesteps are rounded, where theirs are truncated in some cases."""
    config = {f"use_{spread}": True, "beta_schedule": schedule}
    check_levels(ERSDEScheduler(**config), diffusers.DPMSolverMultistepScheduler(**config), 20, apart=1)


def test_clipped_and_rescaled_levels_are_those_of_dpm_solver() -> None:
    config: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}
    check_levels(ERSDEScheduler(**config), diffusers.DPMSolverMultistepScheduler(**config), 20)
    assert (ERSDEScheduler(rescale_betas_zero_snr=True).sigmas.diff() < 0).all()  # theirs are not, of linear betas
    config = {
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    ours = ERSDEScheduler(**config)
    check_levels(ours, diffusers.DPMSolverMultistepScheduler(**config), 20)
    assert float(ours.sigmas[0]) == pytest.approx(2**12, rel=1e-3)
    config = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    check_levels(ERSDEScheduler(**config), diffusers.DPMSolverMultistepScheduler(**config), 20, apart=1)


def check_levels(ours: Any, theirs: Any, n: int, apart: float = 0) -> None:
    ours.set_timesteps(n)
    theirs.set_timesteps(n)
    assert ours.num_inference_steps == len(ours.timesteps) == n
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)  # theirs are of float32 products
    assert (ours.timesteps - theirs.timesteps).abs().max() <= apart
    if not apart:
        assert ours.timesteps.dtype == theirs.timesteps.dtype


@pytest.mark.parametrize("n", [600, 999, 1000])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_no_level_is_met_twice(n: int, spacing: str, final: str) -> None:
    """DDPM's pipeline takes 1000 steps unless told otherwise."""
    scheduler = ERSDEScheduler(timestep_spacing=spacing, final_sigmas_type=final, steps_offset=1)
    scheduler.set_timesteps(n)
    assert len(scheduler.timesteps) == n
    assert (scheduler.timesteps.diff() < 0).all()
    assert (scheduler.sigmas.diff() < 0).all()
    assert scheduler.timesteps.tolist() == list(range(999, -1, -1)) or n < 1000


@pytest.mark.parametrize("spread", ["karras_sigmas", "exponential_sigmas", "beta_sigmas"])
def test_spread_sigmas_may_end_in_sigma_min(spread: str) -> None:
    scheduler = ERSDEScheduler(**{f"use_{spread}": True}, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == 10
    levels = grids.vp_levels().float()
    assert scheduler.sigmas[[0, -1]].tolist() == pytest.approx(levels[[-1, 0]].tolist(), rel=1e-6)
    assert (scheduler.sigmas.diff() < 0).all()


@pytest.mark.parametrize("config", [{}, {"sigma_schedule": "exponential"}, {"rho": 5.0, "sigma_max": 20.0}])
def test_edm_levels_are_those_of_edm_euler(config: dict[str, Any]) -> None:
    theirs = diffusers.EDMEulerScheduler(**config)
    ours = ERSDEEDMScheduler.from_config(theirs.config)
    for n in (2, 10):
        ours.set_timesteps(n)
        theirs.set_timesteps(n)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-6)
    assert ours.init_noise_sigma == theirs.init_noise_sigma
    x = torch.ones(1, 3, 2, 2)
    scaled = [scheduler.scale_model_input(x, scheduler.timesteps[4]) for scheduler in (ours, theirs)]
    torch.testing.assert_close(*scaled)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True, "shift": 2.0},
        {"use_beta_sigmas": True},
    ],
)
def test_flow_levels_are_those_of_flow_match_euler(config: dict[str, Any]) -> None:
    """All but the first, which they put at t = 1."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    ours = ERSDEFlowMatchScheduler.from_config(theirs.config)
    torch.testing.assert_close(ours.sigmas[1:-1], theirs.sigmas[1:])
    mu = {"mu": 0.8} if "use_dynamic_shifting" in config else {}
    for levels in ({"num_inference_steps": 12}, {"sigmas": torch.linspace(1, 0.1, 10).numpy()}):
        ours.set_timesteps(**levels, **mu)
        theirs.set_timesteps(**levels, **mu)
        torch.testing.assert_close(ours.sigmas[1:], theirs.sigmas[1:], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(ours.timesteps[1:], theirs.timesteps[1:], rtol=1e-6, atol=1e-4)
        assert max(0.999, float(ours.sigmas[1])) <= float(ours.sigmas[0]) < 1


def test_cosine_levels_are_ours() -> None:
    scheduler = ERSDEScheduler(beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(scheduler.sigmas[:-1].flip(0).double(), Cosine(1000).levels, rtol=1e-6, atol=0)


def test_custom_timesteps_and_sigmas() -> None:
    scheduler = ERSDEScheduler(use_karras_sigmas=True, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.timesteps.tolist() == [900, 500, 100]
    levels = grids.vp_levels()
    torch.testing.assert_close(scheduler.sigmas.double(), levels[[900, 500, 100, 0]], rtol=1e-6, atol=0)
    scheduler.set_timesteps(sigmas=[14.615, 3.861, 0.152, 0.0])  # with the last, as for Stable Diffusion's pipelines
    assert scheduler.sigmas.tolist() == pytest.approx([14.615, 3.861, 0.152, 0.0])
    nearest = [int((levels.log() - torch.tensor(s).log()).abs().argmin()) for s in (14.615, 3.861, 0.152)]
    assert scheduler.timesteps.tolist() == nearest
    scheduler = ERSDEScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    scheduler.set_timesteps(timesteps=[900.0, 250.0])
    assert scheduler.sigmas.tolist() == pytest.approx([0.9, 0.25, 0.0])
    edm = ERSDEEDMScheduler()
    edm.set_timesteps(sigmas=[10.0, 1.0, 0.1])
    assert edm.sigmas.tolist() == pytest.approx([10.0, 1.0, 0.1])
    assert edm.timesteps.exp().pow(4).tolist() == pytest.approx([10.0, 1.0], rel=1e-5)
