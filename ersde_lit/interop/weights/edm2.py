"""EDM2's network snapshots (Karras et al. 2024; github.com/NVlabs/edm2), and its published averages.

Beside the network, a `Precond` holds the uncertainty of its loss (logvar_*); the weights are of half precision. The
encoder, pickled beside it, tells whether it was trained on pixels or on latents of Stable Diffusion's autoencoder.
"""

from typing import Any

import numpy as np
from torch import Tensor

from ersde_lit.denoisers import VE, Latents, LogNormal
from ersde_lit.errors import UserError
from ersde_lit.interop.weights.model import UNCERTAINTY, ImportedModel
from ersde_lit.interop.weights.persistence import Persistent, arguments, state_dict
from ersde_lit.networks import EDM2UNet
from ersde_lit.untrusted.pickled_tensors import array

PRECOND = "Precond"
_PARTS = {"unet.": "", "logvar_": UNCERTAINTY}  # their names of weights and ours
_NOT_OF_UNET = ("use_fp16", "sigma_data", "logvar_channels")
_MAY_BE_NONE = ("channel_mult_noise", "channel_mult_emb")


def edm2_model(ema: Persistent, snapshot: dict[str, Any]) -> ImportedModel:
    """The model of a snapshot whose 'ema' is a `Precond`.

    Raises:
        UserError: arguments that are no numbers, an unknown encoder, or weights that are none.
        KeyError, TypeError, AttributeError, OverflowError: descriptions that are none.
    """
    given = arguments(ema)
    init_args = {name: value for name, value in given.items() if name not in _NOT_OF_UNET}
    for name, value in init_args.items():
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(v, int | float) for v in values) and not (value is None and name in _MAY_BE_NONE):
            raise UserError(f"its argument {name[:40]!r} is no number")
    settings: dict[str, Any] = {
        "preconditioning": "edm",
        "prediction": "edm",
        "process": VE(),
        "sigma_data": given.get("sigma_data", 0.5),
        "density": _density(snapshot.get("loss_fn")),
        "uncertainty": True,
        "latents": _latents(snapshot.get("encoder")),
    }
    notes = [] if settings["latents"] is None else ["its samples are latents: give `sample` their --decoder"]
    network = {"class_path": f"{EDM2UNet.__module__}.{EDM2UNet.__qualname__}", "init_args": init_args}
    origin = f"EDM2 snapshot, {PRECOND} of a UNet"
    return ImportedModel(origin, network, settings, _renamed(state_dict(ema)), notes=notes)


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        theirs = next((part for part in _PARTS if name.startswith(part)), None)
        if theirs is None:
            raise UserError(f"it has the weight {name[:80]!r}, which is neither of 'unet' nor of 'logvar'")
        renamed[_PARTS[theirs] + name.removeprefix(theirs)] = weight
    return renamed


def _density(loss: Any) -> LogNormal | None:
    """Noise levels it was trained on."""
    match loss:
        case Persistent("EDM2Loss", {"P_mean": int() | float() as mean, "P_std": int() | float() as std}):
            return LogNormal(mean, std)
    return None


def _latents(encoder: Any) -> Latents | None:
    """What the encoder makes of its autoencoder's latents, scale x + bias a channel; None: pixels."""
    match encoder:
        case None | Persistent("StandardRGBEncoder"):
            return None
        case Persistent("StabilityVAEEncoder", state):
            scale, bias = (array(state[name]).astype(float) for name in ("scale", "bias"))
            std = arguments(encoder).get("final_std", 0.5)
            if scale.shape != bias.shape or scale.ndim != 1:
                raise UserError(f"its latents are scaled by {scale.shape} numbers and shifted by {bias.shape}")
            with np.errstate(all="ignore"):  # `Latents` refuses what is not finite
                return Latents((-bias / scale).tolist(), (std / scale).tolist(), std)
        case Persistent(cls):
            known = "StandardRGBEncoder and StabilityVAEEncoder"
            raise UserError(f"its encoder is {cls[:40]!r}: only {known} can be imported")
    raise UserError("its encoder is something else than an encoder")
