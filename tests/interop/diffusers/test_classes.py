"""A configuration of any scheduler of diffusers is taken over with its noising process, or refused by name."""

import contextlib
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

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of numpy and of what is deprecated
KINDS = [ERSDEScheduler, ERSDEEDMScheduler, ERSDEFlowMatchScheduler]
NAMES = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
REQUIRED: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 9},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
    "RFD4ProteinaScheduler": {"schedule_mode": "power", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
OF_THE_PROCESS: list[dict[str, Any]] = [
    {},
    {"beta_start": 0.0002, "beta_end": 0.03, "num_train_timesteps": 500},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "scaled_linear"},
    {"trained_betas": [0.01, 0.02, 0.03], "num_train_timesteps": 3},
    {"rescale_betas_zero_snr": True},
    {"snr_shift_scale": 2.0, "rescale_betas_zero_snr": True},
    {"snr_shift_scale": 1.0},
    {"shift": 4.0},
    {"shift": 4.0, "num_train_timesteps": 100},
    {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 1.0},
    {"sigma_min": 0.1, "sigma_max": 5.0, "use_karras_sigmas": True},
    {"sigma_schedule": "exponential", "rho": 5.0},
    {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    {**FLOW, "flow_shift": 3.0},
    {**FLOW, "shift_terminal": 0.1},
    {**FLOW, "use_dynamic_shifting": True},
    {"use_dynamic_shifting": True},
    {"invert_sigmas": True},
    {"scale_factors": [0.5, 1.0]},
    {"thresholding": True},
]


def made(name: str, options: dict[str, Any] | None = None) -> Any:
    """Theirs with its defaults but for the options; None if it cannot be made, or has none such."""
    with contextlib.suppress(ImportError, NotImplementedError, TypeError, ValueError):
        scheduler = getattr(diffusers, name)(**REQUIRED.get(name, {}), **(options or {}))
        return scheduler if hasattr(scheduler, "config") else None
    return None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_scheduler_is_refused_or_keeps_its_process(name: str, kind: Any) -> None:
    for options in OF_THE_PROCESS:
        theirs = made(name, options)
        if theirs is None:
            continue
        for config in (theirs.config, {**theirs.config, "_class_name": name}):
            try:
                ours = kind.from_config(config)
            except ValueError as error:
                refusal = str(error)
                named = (name, *options, "a configuration")
                assert "\n" not in refusal
                assert any(part in refusal for part in named)
            else:
                check_process(ours, theirs)


def check_process(ours: Any, theirs: Any) -> None:
    config, steps = theirs.config, theirs.config.num_train_timesteps
    assert len(ours) == steps
    if isinstance(ours, ERSDEFlowMatchScheduler) or ours.config.get("use_flow_sigmas"):
        assert config.get("prediction_type", "flow_prediction") == "flow_prediction"
        shift = config.get("flow_shift", config.get("shift", 1.0))
        shift = 1.0 if config.get("use_dynamic_shifting") else shift
        times = torch.arange(1, steps, dtype=torch.float64) / steps
        right = shift * times / (1 + (shift - 1) * times)
        torch.testing.assert_close(ours.sigmas[-steps:-1].flip(0).double(), right)
    elif isinstance(ours, ERSDEScheduler):
        torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.float(), rtol=2e-5, atol=1e-6)
        assert ours.config.prediction_type == config.get("prediction_type", "epsilon")
        assert ours.config.thresholding == config.get("thresholding", False)
        assert config.get("timestep_type", "discrete") == "discrete"
    else:
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(20)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=0)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-5)
        x = torch.full((1, 3, 2, 2), 0.3)
        torch.testing.assert_close(*(one.scale_model_input(x, one.timesteps[3]) for one in (ours, theirs)))


SERVED = [
    ("CogVideoXDDIMScheduler", ERSDEScheduler),
    ("LCMScheduler", ERSDEScheduler),
    ("DPMSolverSDEScheduler", ERSDEScheduler),
    ("EDMDPMSolverMultistepScheduler", ERSDEEDMScheduler),
    ("FlowMatchHeunDiscreteScheduler", ERSDEFlowMatchScheduler),
    ("FlowMatchLCMScheduler", ERSDEFlowMatchScheduler),
]


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_what_a_file_leaves_out_is_its_own_classs_default(name: str, kind: Any) -> None:
    mine = kind.from_config({"_class_name": name})
    again = kind.from_config(made(name).config)
    assert torch.equal(mine.sigmas, again.sigmas)
    assert len(mine) == made(name).config.num_train_timesteps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "IPNDMScheduler", "CosineDPMSolverMultistepScheduler"])
def test_names_the_class_that_is_not_served(kind: Any, name: str, tmp_path: Path) -> None:
    made(name).save_pretrained(tmp_path)
    for make in (kind.from_config, kind.from_pretrained):
        with pytest.raises(ValueError, match=name):
            make(made(name).config if make == kind.from_config else tmp_path)
    with pytest.raises(ValueError, match="MyOwnScheduler"):
        kind.from_config({"_class_name": "MyOwnScheduler"})


@pytest.mark.parametrize(
    ("kind", "config", "named"),
    [
        (ERSDEScheduler, {"beta_schedule": "linear", "noise_offset": 0.1}, "noise_offset=0.1"),
        (ERSDEScheduler, {"_class_name": "DDIMScheduler", "snr_gamma": 5.0}, "snr_gamma=5.0 of DDIMScheduler"),
        (ERSDEScheduler, {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type"),
        (ERSDEScheduler, {"_class_name": "DDPMScheduler", "predict_epsilon": False}, "predict_epsilon"),
        (ERSDEEDMScheduler, {"sigma_data": 0.5, "beta_end": 0.02}, "beta_end"),
        (ERSDEEDMScheduler, {"_class_name": "EDMDPMSolverMultistepScheduler", "thresholding": True}, "thresholding"),
        (ERSDEFlowMatchScheduler, {"_class_name": "FlowMatchLCMScheduler", "scale_factors": [1, 2]}, "scale_factors"),
        (ERSDEFlowMatchScheduler, {"shift": 3.0, "prediction_type": "sample"}, "prediction_type"),
        (
            ERSDEFlowMatchScheduler,
            {"_class_name": "DPMSolverMultistepScheduler", **FLOW, "use_dynamic_shifting": True, "thresholding": True},
            "thresholding",
        ),
        (ERSDEFlowMatchScheduler, {"beta_schedule": "linear", "use_dynamic_shifting": True}, "beta_schedule"),
    ],
)
def test_an_unknown_option_is_refused_by_its_name(kind: Any, config: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} does not know {named}"):
        kind.from_config(config)


def test_a_misspelt_change_is_refused_and_a_change_of_a_default_kept() -> None:
    config = diffusers.DDIMScheduler().config
    with pytest.raises(ValueError, match="does not know ordr=2"):
        ERSDEScheduler.from_config(config, ordr=2)
    assert ERSDEScheduler.from_config({**config, "beta_end": 0.03}).config.beta_end == 0.03
    assert ERSDEScheduler.from_config({**config, "timestep_spacing": "trailing"}).config.timestep_spacing == "trailing"
    assert ERSDEScheduler.from_config(config).config.timestep_spacing == "linspace"
    assert ERSDEScheduler.from_config(config, beta_end=0.04).config.beta_end == 0.04


def test_options_of_loading_are_no_options_of_ours(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    loading = {"subfolder": "scheduler", "torch_dtype": torch.float16, "use_safetensors": True, "variant": "fp16"}
    assert ERSDEScheduler.from_pretrained(tmp_path, **loading, order=2).config.order == 2


def test_published_configurations_are_taken_over() -> None:
    """As they lie on the hub, with options of other classes."""
    sdxl = {
        **{"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012},
        **{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "steps_offset": 1},
        **{"interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon"},
        **{"sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "timestep_spacing": "leading"},
        **{"trained_betas": None, "use_karras_sigmas": False, "sigma_max": None, "timestep_type": "discrete"},
    }
    assert not ERSDEScheduler.from_config(sdxl).config.clip_sample
    wan = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=5.0).config
    assert ERSDEScheduler.from_config({**wan, "_class_name": "UniPCMultistepScheduler"}).config.flow_shift == 5.0
    flux = {
        **{"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0"},
        **{"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15},
        **{"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True},
    }
    assert ERSDEFlowMatchScheduler.from_config(flux).config.use_dynamic_shifting
