"""Training process and prediction of a model, from the configuration of its diffusers scheduler.

Options of sampling are ignored, as our samplers replace the scheduler.
"""

import operator
from collections.abc import Mapping
from typing import Any

from ersde_lit.denoisers import VE, VP, Cosine, ScaledLinear
from ersde_lit.errors import UserError, needs_extra
from ersde_lit.interop.diffusers.configuration import SERVED, defaults

_OF_OTHER_STEPS = {"CogVideoXDDIM", "CogVideoXDPM", "LCM", "RePaint", "TCD"}  # and of no pipeline that can be imported
_VP = [f"{name}Scheduler" for name in SERVED["ERSDEScheduler"] if name not in _OF_OTHER_STEPS] + ["ERSDEScheduler"]
FAMILIES = dict.fromkeys(_VP, "VP") | {"ScoreSdeVeScheduler": "VE"}  # by scheduler
PIPELINES = dict.fromkeys(("DDPMPipeline", "DDIMPipeline", "PNDMPipeline"), "VP") | {"ScoreSdeVePipeline": "VE"}

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_NEUTRAL = {  # options that change the process if they have another value
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
}
_FOREIGN = ("shift", "base_shift", "max_shift", "invert_sigmas", "sigma_data", "sigma_schedule")  # of flow and EDM
_CLAMPS = ("clip_sample", "thresholding")
_Found = tuple[dict[str, Any], list[str], list[str]]  # settings, options that decide on them, notes


def trained_with(name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Process, preconditioning and prediction of a scheduler's model, as arguments of `DiffusionModule`; and notes.

    Args:
        name: of the scheduler's class, one of `FAMILIES`, whose defaults are used for missing options.
        given: the scheduler's configuration.

    Raises:
        UserError: options of an unknown process, or impossible values.
    """
    defaults = _defaults(name)
    options = {**defaults, **given}
    for option in (option for option in _FOREIGN if option in given and option not in defaults):
        raise UserError(f"a {name} with {option}, an option of other models' schedulers, cannot be imported")
    for option, neutral in _NEUTRAL.items():
        if (value := options.get(option, neutral)) not in (neutral, None):
            raise UserError(f"a {name} with {option} cannot be imported: {str(value)[:40]} makes it another process")
    try:
        settings, decisive, notes = (_vp if FAMILIES[name] == "VP" else _ve)(name, options, given)
    except (TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"the {name}'s values cannot be read: {str(error)[:100]}") from None
    assumed = [f"{option} {options[option]}" for option in decisive if option not in given]
    return settings, [f"assumed, as {name} does: {', '.join(assumed)}"] * bool(assumed) + notes


def _vp(name: str, options: dict[str, Any], given: Mapping[str, Any]) -> _Found:
    decisive = ["beta_schedule", "beta_start", "beta_end", "prediction_type"]
    prediction_given = given.get("prediction_type")
    if given.get("predict_epsilon") is False and prediction_given is None:  # its first name
        options["prediction_type"] = "sample"
        decisive.remove("prediction_type")
    if given.get("predict_epsilon") is False and prediction_given == "epsilon":
        raise UserError(f"a {name} with predict_epsilon false and prediction_type epsilon contradicts itself")
    if "num_train_timesteps" not in given:
        raise UserError(f"a {name} without num_train_timesteps cannot be imported: only one of discrete steps")
    schedule, prediction = options["beta_schedule"], options["prediction_type"]
    if schedule not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        raise UserError(
            f"a {name} with beta_schedule {str(schedule)[:40]!r} cannot be imported: "
            "only linear, scaled_linear and squaredcos_cap_v2"
        )
    if prediction not in _PREDICTIONS:
        known = ", ".join(_PREDICTIONS)
        raise UserError(f"the {name}'s prediction_type cannot be read: {str(prediction)[:40]!r} is none of {known}")
    clamps = [option for option in _CLAMPS if options.get(option)]
    notes = [f"{' and '.join(clamps)}: {name} clamps x0 at each step; the samplers here do not"] if clamps else []
    steps = operator.index(options["num_train_timesteps"])
    if isinstance(options["num_train_timesteps"], bool) or steps < 2:
        raise UserError(f"a {name} of {options['num_train_timesteps']} time steps cannot be imported: at least 2")
    settings = {"preconditioning": "vp", "prediction": _PREDICTIONS[prediction]}
    if schedule == "squaredcos_cap_v2":
        decisive = [option for option in decisive if option not in ("beta_start", "beta_end")]
        return settings | {"process": Cosine(steps), "preconditioning": "iddpm"}, decisive, notes
    cls = VP if schedule == "linear" else ScaledLinear
    process = cls(options["beta_start"] * steps, options["beta_end"] * steps, steps)
    return settings | {"process": process}, decisive, notes


def _ve(name: str, options: dict[str, Any], given: Mapping[str, Any]) -> _Found:
    low, high = options["sigma_min"], options["sigma_max"]
    note = f"sigma {low:.5g} to {high:.5g} of its images, in [0, 1], is twice that in lam, of images in [-1, 1]"
    settings = {"process": VE(2 * low, 2 * high), "preconditioning": "ve", "prediction": "score"}
    return settings, ["sigma_min", "sigma_max"], [note]


def _defaults(name: str) -> dict[str, Any]:
    with needs_extra("diffusers", f"the model, which is kept with diffusers' {name},"):
        import diffusers
    from ersde_lit.interop.diffusers.scheduler import ERSDEScheduler

    scheduler = ERSDEScheduler if name == "ERSDEScheduler" else getattr(diffusers, name, None)
    if scheduler is None:
        raise UserError(f"diffusers has no {name}: it is too old, or too new, for this model")
    return defaults(scheduler)
