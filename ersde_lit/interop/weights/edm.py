"""Reader of the network snapshots of EDM (Karras et al. 2022; github.com/NVlabs/edm) and EDM2.

The network is our own; its arguments and weights are read from the file, none of whose code is run.
"""

from pathlib import Path
from typing import Any, NamedTuple

from ersde_lit.denoisers import VE, VP, Cosine, Process
from ersde_lit.errors import UserError
from ersde_lit.interop.weights.edm2 import PRECOND, edm2_model
from ersde_lit.interop.weights.model import ImportedModel
from ersde_lit.interop.weights.persistence import Persistent, arguments, read_snapshot, state_dict
from ersde_lit.networks import DhariwalUNet, SongUNet

_NETWORKS = {cls.__name__: cls for cls in (SongUNet, DhariwalUNet)}
_ALL = ("img_resolution", "img_channels", "label_dim", "use_fp16", "model_type")  # arguments of every preconditioning


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


def read_edm(path: str | Path) -> ImportedModel:
    """The averaged network of `network-snapshot-*.pkl` and the published .pkl files.

    Raises:
        UserError: a file that is damaged, hostile, of something else, or of an unknown model.
    """
    snapshot = read_snapshot(path)
    ema = snapshot.get("ema")
    if not isinstance(ema, Persistent) or ema.cls not in (*_PRECONDITIONINGS, PRECOND):
        found = f"a {ema.cls[:40]!r}" if isinstance(ema, Persistent) else "nothing"
        known = ", ".join((*_PRECONDITIONINGS, PRECOND))
        raise UserError(f"{path} holds {found} as 'ema': only {known} can be imported")
    try:
        return edm2_model(ema, snapshot) if ema.cls == PRECOND else _model(ema)
    except KeyError as error:
        raise UserError(f"{path}: the {ema.cls} lacks {str(error)[:80]}") from None
    except (TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: the {ema.cls} was made with impossible arguments: {str(error)[:80]}") from None


def _model(ema: Persistent) -> ImportedModel:
    known = _PRECONDITIONINGS[ema.cls]
    given = {**known.defaults, "label_dim": 0, "use_fp16": False, "model_type": known.model_type, **arguments(ema)}
    model_type, channels = given["model_type"], given["img_channels"]
    if model_type not in _NETWORKS:
        raise UserError(f"the network {str(model_type)[:40]!r} is not one of {', '.join(_NETWORKS)}")
    cls = _NETWORKS[model_type]
    inner = {name: value for name, value in given.items() if name not in (*_ALL, *known.defaults)}
    label_dropout = inner.pop("label_dropout", 0.0)  # here an argument of the module
    init_args = {
        "img_resolution": given["img_resolution"],
        "in_channels": channels,
        "out_channels": channels,
        "label_dim": given["label_dim"],
        **{name: list(value) if isinstance(value, tuple) else value for name, value in inner.items()},
    }
    weights = state_dict(ema.state["_modules"]["model"])
    notes = []
    if ema.cls == "iDDPMPrecond":
        outputs = [name for name in weights if name.startswith("out_conv.") or "_aux_conv." in name]
        weights |= {name: weights[name][:channels].clone() for name in outputs}
        notes.append("the learned variances are left out")
    settings = {
        "preconditioning": known.name,
        "prediction": known.prediction,
        "process": known.process(**{n: given[n] for n in known.defaults if n != "sigma_data"}),
        "sigma_data": given.get("sigma_data", 0.5),
        "label_dropout": label_dropout,
    }
    network = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}
    return ImportedModel(f"EDM snapshot, {ema.cls} of a {model_type}", network, settings, weights, notes=notes)
