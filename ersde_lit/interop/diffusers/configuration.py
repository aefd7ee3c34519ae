"""Configurations of diffusers' schedulers, translated to ours and refused where the noising process is another."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from ersde_lit.errors import UserError

# The schedulers of diffusers with the noising process and model output of each of ours.
SERVED = {
    "ERSDEScheduler": (
        *("CogVideoXDDIM", "CogVideoXDPM", "DDIMInverse", "DDIMParallel", "DDIM", "DDPMParallel", "DDPM"),
        *("DEISMultistep", "DPMSolverMultistepInverse", "DPMSolverMultistep", "DPMSolverSDE", "DPMSolverSinglestep"),
        *("EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete"),
        *("LCM", "LMSDiscrete", "PNDM", "RePaint", "SASolver", "TCD", "UniPCMultistep"),
    ),
    "ERSDEEDMScheduler": ("EDMDPMSolverMultistep", "EDMEuler"),
    "ERSDEFlowMatchScheduler": (
        *("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "LTXEulerAncestralRF"),
    ),
}
_FAMILIES = {f"{name}Scheduler": ours for ours, theirs in SERVED.items() for name in theirs} | {n: n for n in SERVED}
# Where no class is named, the first of these options that is set tells the family of a configuration.
_TELLING = {"beta_schedule": "ERSDEScheduler", "sigma_data": "ERSDEEDMScheduler", "shift": "ERSDEFlowMatchScheduler"}
# Options of other steps, or without effect unless one that is checked is set. Kept, for converting back.
_OTHERS = {
    *("algorithm_type", "corrector_order", "disable_corrector", "dynamic_thresholding_ratio", "clip_sample_range"),
    *("eta", "euler_at_final", "interpolation_type", "lower_order_final", "noise_sampler_seed", "predict_x0"),
    *("original_inference_steps", "predictor_order", "s_noise", "sample_max_value", "set_alpha_to_one"),
    *("skip_prk_steps", "solver_order", "solver_p", "solver_type", "stochastic_sampling", "tau_func", "tensor_format"),
    *("time_shift_type", "timestep_scaling", "upscale_mode", "variance_type"),
    *("torch_dtype", "use_safetensors", "variant"),  # of loading
}
# Options without effect in a flow model that is configured as a VP one.
_WITHOUT_USE_IN_FLOW = {
    *("beta_start", "beta_end", "beta_schedule", "trained_betas", "use_flow_sigmas", "flow_shift"),
    *("timestep_spacing", "steps_offset", "lambda_min_clipped"),
}
# Values of options that are what is done here anyway; for all others None and False.
_NEUTRAL = {
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
    "predict_epsilon": True,
    "prediction_type": "flow_prediction",
    "snr_shift_scale": 1.0,
}


def converted(scheduler: type, config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The configuration for `scheduler`, one of ours; `changes`, which will be made to it, are checked too.

    Missing options have the defaults of the configuration's own class, but for timestep_spacing, an option of sampling.

    Raises:
        UserError: a class or an option whose noising process is another, or unknown.
    """
    ours = defaults(scheduler)
    name = _class_of(config)
    if name is not None and name not in _FAMILIES and name not in [base.__name__ for base in scheduler.__mro__]:
        raise UserError(
            f"no scheduler here is known to fit the models of {name}: if their noising process is DDPMScheduler's, "
            "EDMEulerScheduler's or FlowMatchEulerDiscreteScheduler's, give that name as _class_name"
        )
    _check_family(scheduler, name, {**config, **changes})

    theirs = _their_defaults().get(name or "", {})
    made = {key: value for key, value in theirs.items() if key in ours and key != "timestep_spacing"} | dict(config)
    if "_use_default_values" in made:  # diffusers takes the new class's defaults of those that are named in it
        left = [key for key in made["_use_default_values"] if key not in ours or key == "timestep_spacing"]
        made["_use_default_values"] = [key for key in left if made.get(key) == theirs.get(key, made.get(key))]
    if name is not None and name.startswith("CogVideoX"):
        made["clip_sample"] = False  # they have the option, by default on, and never clip
    _check_options(scheduler, name, {**made, **changes})
    return made


def _class_of(config: Mapping[str, Any]) -> str | None:
    """The class named, or found by its options: a scheduler that was not loaded from a file does not name it."""
    if "_class_name" in config:
        return str(config["_class_name"])
    if "_use_default_values" not in config and type(config) is dict:  # written by hand
        return None
    options = {key for key in config if not key.startswith("_")}
    same = [name for name, defaults in _their_defaults().items() if defaults.keys() == options]
    return min(same, key=lambda name: name not in _FAMILIES, default=None)


def _family_of(scheduler: type) -> str:
    return next(base.__name__ for base in scheduler.__mro__ if base.__name__ in SERVED)


def _check_family(scheduler: type, name: str | None, config: dict[str, Any]) -> None:
    telling = next((option for option in _TELLING if config.get(option) is not None), "")
    family = _FAMILIES.get(name or "") or _TELLING.get(telling)
    if config.get("use_dynamic_shifting"):  # of VP schedulers too, which can serve flow models
        telling, family = "use_dynamic_shifting", "ERSDEFlowMatchScheduler"
    if family not in (None, _family_of(scheduler)):
        told = f" with {telling}={config[telling]}" if telling else ""
        raise UserError(
            f"{config.get('_class_name', 'a configuration')}{told} is for {family}, not {scheduler.__name__}"
        )


def _check_options(scheduler: type, name: str | None, config: dict[str, Any]) -> None:
    known = defaults(scheduler).keys() | _OTHERS
    if config.get("use_flow_sigmas") and _family_of(scheduler) == "ERSDEFlowMatchScheduler":
        known |= _WITHOUT_USE_IN_FLOW
    for option, value in config.items():
        neutral = value is None or (value == _NEUTRAL[option] if option in _NEUTRAL else value is False)
        if not (neutral or option in known or option.startswith("_")):
            raise UserError(
                f"{scheduler.__name__} does not know {option}={value!r}{f' of {name}' if name else ''}: leave it out "
                "if the model's noise does not depend on it"
            )


def defaults(scheduler: Any) -> dict[str, Any]:
    """The options of a scheduler's constructor, each with its default (`inspect.Parameter.empty` if it has none)."""
    parameters = inspect.signature(scheduler.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}


@cache
def _their_defaults() -> dict[str, dict[str, Any]]:
    """Options and defaults by the name of each scheduler of diffusers."""
    import diffusers

    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    return {name: defaults(getattr(diffusers, name)) for name in names}


def check_option(config: Any, option: str, *values: str) -> None:
    """Raises UserError unless the option is one of the values."""
    if config[option] not in values:
        raise UserError(f"{option} must be one of {', '.join(values)}, not {config[option]!r}")


def only_option(config: Any, *options: str) -> str:
    """The one option that is set, "" if none is; UserError if more are."""
    found = [option for option in options if config[option]]
    if len(found) > 1:
        raise UserError(f"only one of {' and '.join(found)} can be used")
    return found[0] if found else ""


def check_one_given(**given: Any) -> None:
    """Raises UserError unless just one argument of set_timesteps is not None."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise UserError(f"set_timesteps takes one of {', '.join(given)}, not {' and '.join(names) or 'none'}")
