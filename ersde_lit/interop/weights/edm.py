"""Reader of EDM's network snapshots (Karras et al. 2022; github.com/NVlabs/edm), which runs none of their code.

Such a pickle describes each object by {type, version, module_src, class_name, state}; EDM's loader runs `module_src`.
Here only names, arguments of constructors and tensors are read, and the network is our own.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ersde_lit.denoisers import VE, VP, Cosine, Process
from ersde_lit.errors import UserError
from ersde_lit.interop.weights.model import ImportedModel
from ersde_lit.networks import DhariwalUNet, SongUNet
from ersde_lit.untrusted.pickled_tensors import TENSORS
from ersde_lit.untrusted.restricted_pickle import AllowedNames, PickledObject, read_pickle

_NETWORKS = {cls.__name__: cls for cls in (SongUNet, DhariwalUNet)}
_ALL = ("img_resolution", "img_channels", "label_dim", "use_fp16", "model_type")  # arguments of every preconditioning
_DEEPEST = 20  # modules within modules


class _Preconditioning(NamedTuple):
    """One of EDM's classes: our name and prediction, its default arguments and network, its process."""

    name: str
    prediction: str
    defaults: dict[str, Any]
    model_type: str
    process: Any  # of these arguments -> Process


def _edm(sigma_min: float, sigma_max: float) -> Process:
    if (sigma_min, sigma_max) != (0, float("inf")):
        raise UserError(f"an EDMPrecond that is limited to noise levels {sigma_min} to {sigma_max} cannot be imported")
    return VE()


def _vp(beta_d: float, beta_min: float, M: int, epsilon_t: float) -> Process:
    _check_steps(M)
    return VP(beta_min, beta_min + beta_d, t_min=epsilon_t)


def _iddpm(C_1: float, C_2: float, M: int) -> Process:
    _check_steps(M)
    return Cosine(M, C_2, 1 - C_1)


def _check_steps(steps: int) -> None:
    if steps != 1000:
        raise UserError(f"a network of {steps} time steps cannot be imported: only of 1000")


_PRECONDITIONINGS = {
    "EDMPrecond": _Preconditioning(
        "edm", "edm", {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5}, "DhariwalUNet", _edm
    ),
    "VPPrecond": _Preconditioning(
        "vp", "eps", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}, "SongUNet", _vp
    ),
    "VEPrecond": _Preconditioning("ve", "score", {"sigma_min": 0.02, "sigma_max": 100}, "SongUNet", VE),
    "iDDPMPrecond": _Preconditioning("iddpm", "eps", {"C_1": 0.001, "C_2": 0.008, "M": 1000}, "DhariwalUNet", _iddpm),
}


class _Object(NamedTuple):
    """An object of EDM's by the name of its class and its attributes."""

    cls: str
    state: dict[str, Any]


def _persistent(meta: Any) -> _Object:
    """Replaces `torch_utils.persistence._reconstruct_persistent_obj`, which would run the source."""
    match meta:
        case {"type": "class", "class_name": str(cls), "state": dict(state)}:
            return _Object(cls, state)
    raise UserError("an object whose description cannot be read")


_NAMES = AllowedNames(
    {**TENSORS, ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent},
    frozenset({("torch.nn.modules.container", "ModuleDict"), ("torch.nn.modules.container", "ModuleList")})
    | {("dnnlib.util", "EasyDict")},
)


def read_edm(path: str | Path) -> ImportedModel:
    """The averaged network of `network-snapshot-*.pkl` and the published .pkl files.

    Raises:
        UserError: a file that is damaged, hostile, of something else, or of an unknown model.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            snapshot = read_pickle(content, _NAMES)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    ema = snapshot.get("ema") if isinstance(snapshot, dict) else None
    if not isinstance(ema, _Object) or ema.cls not in _PRECONDITIONINGS:
        found = f"a {ema.cls[:40]!r}" if isinstance(ema, _Object) else "nothing"
        raise UserError(f"{path} holds {found} as 'ema': only {', '.join(_PRECONDITIONINGS)} can be imported")
    known = _PRECONDITIONINGS[ema.cls]
    arguments = {**known.defaults, "label_dim": 0, "use_fp16": False, "model_type": known.model_type}
    arguments |= _arguments(ema)
    try:
        return _model(ema, known, arguments)
    except KeyError as error:
        raise UserError(f"{path}: the {ema.cls} lacks {str(error)[:80]}") from None
    except (TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: the {ema.cls} was made with impossible arguments: {str(error)[:80]}") from None


def _arguments(made: _Object) -> dict[str, Any]:
    """The keyword arguments of its constructor, plain values."""
    keywords = made.state.get("_init_kwargs")
    if made.state.get("_init_args") not in ((), []) or not isinstance(keywords, dict):
        raise UserError(f"the {made.cls[:40]} does not say by which keywords it was made")
    for name, value in keywords.items():
        values = value if isinstance(value, list | tuple) else [value]
        if not isinstance(name, str) or not all(v is None or isinstance(v, bool | int | float | str) for v in values):
            raise UserError(f"its argument {str(name)[:40]!r} is no plain value")
    return keywords


def _model(ema: _Object, known: _Preconditioning, arguments: dict[str, Any]) -> ImportedModel:
    model_type, channels = arguments["model_type"], arguments["img_channels"]
    if model_type not in _NETWORKS:
        raise UserError(f"the network {str(model_type)[:40]!r} is not one of {', '.join(_NETWORKS)}")
    cls = _NETWORKS[model_type]
    inner = {name: value for name, value in arguments.items() if name not in (*_ALL, *known.defaults)}
    label_dropout = inner.pop("label_dropout", 0.0)  # here an argument of the module
    init_args = {
        "img_resolution": arguments["img_resolution"],
        "in_channels": channels,
        "out_channels": channels,
        "label_dim": arguments["label_dim"],
        **{name: list(value) if isinstance(value, tuple) else value for name, value in inner.items()},
    }
    weights = _state(ema.state["_modules"]["model"])
    notes = []
    if ema.cls == "iDDPMPrecond":
        outputs = [name for name in weights if name.startswith("out_conv.") or "_aux_conv." in name]
        weights |= {name: weights[name][:channels].clone() for name in outputs}
        notes.append("the learned variances are left out")
    settings = {
        "preconditioning": known.name,
        "prediction": known.prediction,
        "process": known.process(**{n: arguments[n] for n in known.defaults if n != "sigma_data"}),
        "sigma_data": arguments.get("sigma_data", 0.5),
        "label_dropout": label_dropout,
    }
    network = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}
    return ImportedModel(f"EDM snapshot, {ema.cls} of a {model_type}", network, settings, weights, notes=notes)


def _state(module: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Parameters and buffers of a module and its submodules, by the names of a state dict."""
    if not isinstance(module, _Object | PickledObject) or not isinstance(module.state, dict) or depth > _DEEPEST:
        raise UserError(f"its module {prefix[:80]!r} is none")
    state: dict[str, Tensor] = {}
    for group in ("_parameters", "_buffers"):
        members = module.state.get(group)
        for name, value in members.items() if isinstance(members, Mapping) else ():
            if not isinstance(value, Tensor | None):
                raise UserError(f"its weight {(prefix + str(name))[:80]!r} is no tensor")
            if value is not None:
                state[f"{prefix}{name}"] = value
    modules = module.state.get("_modules")
    for name, child in modules.items() if isinstance(modules, Mapping) else ():
        if child is not None:
            state |= _state(child, f"{prefix}{name}.", depth + 1)
    return state
