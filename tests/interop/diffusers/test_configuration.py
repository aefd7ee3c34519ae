"""Configurations are kept, taken over from diffusers' schedulers and given back; what is wrong is said in one line."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from ersde_lit.interop.diffusers.scheduler import (  # noqa: E402
    ERSDEEDMScheduler,
    ERSDEFlowMatchScheduler,
    ERSDEScheduler,
)
from ersde_lit.solvers import grids  # noqa: E402

KINDS = [ERSDEScheduler, ERSDEEDMScheduler, ERSDEFlowMatchScheduler]


def public(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"order": 2, "noise_scale": "sde", "corrector": 2, "nodes": 0.5}])
def test_configurations_are_kept(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    scheduler = kind(**options)
    scheduler.save_pretrained(tmp_path)
    for again in (kind.from_pretrained(tmp_path), kind.from_config(scheduler.config)):
        assert public(again.config) == public(scheduler.config)
        results = []
        for one in (scheduler, again):
            one.set_timesteps(5)
            generator, x = torch.Generator().manual_seed(0), torch.ones(1, 3, 4, 4)
            for t in one.timesteps:
                x = one.step(0.1 * x, t, x, generator).prev_sample
            results.append(x)
        assert torch.equal(*results)


@pytest.mark.parametrize(
    "theirs",
    [
        diffusers.DDPMScheduler(beta_end=0.03, variance_type="learned_range"),
        diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.012, steps_offset=1, skip_prk_steps=True),
        diffusers.EulerDiscreteScheduler(timestep_spacing="leading", use_karras_sigmas=True),
        diffusers.DPMSolverMultistepScheduler(solver_order=3, trained_betas=[0.01, 0.02, 0.03]),
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ],
)
def test_other_schedulers_configurations_are_taken_over_and_given_back(theirs: Any) -> None:
    config = theirs.config
    scheduler = ERSDEScheduler.from_config(config, order=2, noise_scale="er_sde_3")
    assert (scheduler.config.order, scheduler.config.noise_scale, scheduler.order) == (2, "er_sde_3", 1)
    if not config.get("use_flow_sigmas"):
        cumprod = theirs.alphas_cumprod
        torch.testing.assert_close(scheduler.alphas_cumprod, cumprod, rtol=2e-5, atol=1e-9)
    for key in ("prediction_type", "timestep_spacing", "steps_offset", "use_karras_sigmas", "flow_shift"):
        if key in config and key not in config.get("_use_default_values", []):
            assert scheduler.config[key] == config[key]
    back = theirs.from_config(scheduler.config)
    assert {key: back.config[key] for key in public(config)} == public(config)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (ERSDEScheduler, {"order": 0}, "order must be an integer of at least 1"),
        (ERSDEScheduler, {"noise_scale": "er_sde_6"}, "unknown noise scale"),
        (ERSDEEDMScheduler, {"noise_scale": grids}, "noise_scale of a scheduler is a name"),
        (ERSDEScheduler, {"beta_schedule": "sigmoid"}, "beta_schedule must be"),
        (ERSDEScheduler, {"prediction_type": "eps"}, "prediction_type must be one of epsilon"),
        (ERSDEScheduler, {"prediction_type": "flow_prediction"}, "does not go with use_flow_sigmas=False"),
        (ERSDEScheduler, {"prediction_type": "v_prediction", "use_flow_sigmas": True}, "does not go with"),
        (ERSDEScheduler, {"final_sigmas_type": "one"}, "final_sigmas_type must be one of zero, sigma_min"),
        (ERSDEScheduler, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of use_karras_sigmas and"),
        (ERSDEEDMScheduler, {"sigma_schedule": "linear"}, "sigma_schedule must be one of karras, exponential"),
        (ERSDEFlowMatchScheduler, {"invert_sigmas": True}, "invert_sigmas"),
        (ERSDEFlowMatchScheduler, {"time_shift_type": "log"}, "time_shift_type must be"),
    ],
)
def test_refuses_configurations_in_one_line(kind: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**config)


DYNAMIC = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}


@pytest.mark.parametrize(
    ("theirs", "right"),
    [
        (diffusers.DDPMScheduler(), ERSDEScheduler),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), ERSDEScheduler),
        (diffusers.EDMEulerScheduler(), ERSDEEDMScheduler),
        (diffusers.FlowMatchEulerDiscreteScheduler(), ERSDEFlowMatchScheduler),
        (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), ERSDEFlowMatchScheduler),
        (diffusers.UniPCMultistepScheduler(**DYNAMIC), ERSDEFlowMatchScheduler),
        *((kind(), kind) for kind in KINDS),
    ],
)
def test_refuses_configurations_of_other_families_by_the_name_of_theirs(
    theirs: Any, right: Any, tmp_path: Path
) -> None:
    mine = right.from_config(theirs.config)
    type("Derived", (right,), {}).from_config(theirs.config)
    theirs.save_pretrained(tmp_path)
    for kind in KINDS:
        for config in (theirs.config, mine.config):
            if kind is right:
                kind.from_config(config)
                continue
            with pytest.raises(ValueError, match=rf"^[^\n]* is for {right.__name__}, not {kind.__name__}$"):
                kind.from_config(config)
        if kind is not right:
            with pytest.raises(ValueError, match=rf"is for {right.__name__}, "):
                kind.from_pretrained(tmp_path)


def test_dynamic_shifting_is_not_dropped() -> None:
    theirs = diffusers.UniPCMultistepScheduler(**DYNAMIC)
    message = "^a configuration with use_dynamic_shifting=True is for ERSDEFlowMatchScheduler, not ERSDEScheduler$"
    with pytest.raises(ValueError, match=message):
        ERSDEScheduler.from_config(theirs.config)
    with pytest.raises(ValueError, match="ERSDEFlowMatchScheduler"):
        ERSDEScheduler.from_config(diffusers.DDPMScheduler().config, use_dynamic_shifting=True)
    assert ERSDEFlowMatchScheduler.from_config(theirs.config).config.use_dynamic_shifting
    scheduler = ERSDEScheduler()
    scheduler.set_timesteps(5, mu=None)
    with pytest.raises(ValueError, match=r"^ERSDEScheduler cannot be shifted by mu=1\.5: use ERSDEFlowMatchScheduler"):
        scheduler.set_timesteps(5, mu=1.5)


def test_refuses_wrong_calls_in_one_line() -> None:
    scheduler, x = ERSDEScheduler(), torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="set_timesteps must be called before step"):
        scheduler.step(x, 999, x)
    for wrong, message in (
        ({}, "one of num_inference_steps, timesteps, sigmas, not none"),
        ({"num_inference_steps": 5, "timesteps": [3]}, "not num_inference_steps and timesteps"),
        ({"num_inference_steps": 1001}, "1001 inference steps are more than the model's 1000 levels"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"timesteps": [5, 6]}, "strictly descending"),
        ({"timesteps": [1000]}, "timesteps must be from 0 to 999"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "strictly descending"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.set_timesteps(**wrong)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="timestep 3 is not one of the 2"):
        scheduler.step(x, 3, x)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="all 2 steps are done: call set_timesteps"):
        scheduler.step(x, scheduler.timesteps[0], x)
    unspaced = ERSDEScheduler(timestep_spacing="even")
    with pytest.raises(ValueError, match="timestep_spacing must be"):
        unspaced.set_timesteps(5)
    dynamic = ERSDEFlowMatchScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="needs mu"):
        dynamic.set_timesteps(5)
    for kind in KINDS:
        for n in (0, -1, 2.5):
            with pytest.raises(ValueError, match="must be an integer of at least 1"):
                kind().set_timesteps(n)
    steep = ERSDEScheduler(noise_scale="er_sde_4", beta_schedule="squaredcos_cap_v2")
    steep.set_timesteps(1000)
    with pytest.raises(ValueError, match="noise scale er_sde_4 is not valid from lam"):
        steep.step(x, steep.timesteps[0], x)


def test_without_diffusers_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name == "diffusers" or name.startswith(("diffusers.", "ersde_lit.interop.diffusers")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)  # type: ignore[arg-type]
    with pytest.raises(
        ImportError, match=r"^the schedulers for diffusers need diffusers: pip install diffusers[^\n]*$"
    ):
        import ersde_lit.interop.diffusers.scheduler  # noqa: F401
