"""Reader of guided-diffusion's state dicts (Dhariwal & Nichol 2021; github.com/openai/guided-diffusion).

They become EDM's form of the same networks. The weights tell the sizes (`guided_layout`); what they do not tell are
flags, which are known for the published models.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from ersde_lit.denoisers import VP, Cosine, Process
from ersde_lit.errors import UserError
from ersde_lit.interop.weights.guided_flags import GuidedFlags
from ersde_lit.interop.weights.guided_layout import Sizes, renamed, sizes_of
from ersde_lit.interop.weights.model import ImportedClassifier, ImportedModel
from ersde_lit.networks.layers import separable_filter

_HEADS: dict[str, Any] = {"num_head_channels": 64, "use_new_attention_order": False}
_DEFAULTS = {"diffusion_steps": 1000, "rescale_timesteps": False, "predict_xstart": False}  # guided-diffusion's own
_COSINE, _LINEAR = {"noise_schedule": "cosine"}, {"noise_schedule": "linear"}


# Flags of the published models, by (num_channels, mult, num_res_blocks).
_DENOISERS: dict[tuple[Any, ...], dict[str, Any]] = {
    (192, (1, 2, 3, 4), 3): _HEADS | _COSINE | {"use_new_attention_order": True, "image_size": 64, "dropout": 0.1},
    (256, (1, 1, 2, 3, 4), 2): {**_LINEAR, "image_size": 128, "num_heads": 4, "use_new_attention_order": False},
    (256, (1, 1, 2, 2, 4, 4), 2): _HEADS | _LINEAR | {"image_size": 256},  # and LSUN
    (256, (0.5, 1, 1, 2, 2, 4, 4), 2): _HEADS | _LINEAR | {"image_size": 512},
}
_CLASSIFIERS: dict[tuple[Any, ...], dict[str, Any]] = {
    (128, (1, 2, 3, 4), 4): _HEADS | _COSINE,
    (128, (1, 1, 2, 3, 4), 2): _HEADS | _LINEAR,
    (128, (1, 1, 2, 2, 4, 4), 2): _HEADS | _LINEAR,
    (128, (0.5, 1, 1, 2, 2, 4, 4), 2): _HEADS | _LINEAR,
}


def import_guided(state: Mapping[str, Tensor], flags: GuidedFlags) -> ImportedModel | ImportedClassifier:
    """The denoiser or noisy classifier of a state dict; UserError if ours cannot express it or flags are missing."""
    sizes = sizes_of(state)
    if sizes.channels != 3:
        raise UserError(f"it takes {sizes.channels} channels: models that enlarge images cannot be imported")
    known, notes = _flags(sizes, flags)
    size = sizes.pool_side << (len(sizes.mult) - 1) if sizes.classifier else known["image_size"]
    levels = [f"{size >> level}x{size >> level}" for level in range(len(sizes.mult))]
    widths = [round(m * sizes.width) for m in sizes.mult]
    heads = [known.get("num_heads") or w // known["num_head_channels"] for w in widths]
    for level in {*sizes.attending, len(levels) - 1}:
        if not heads[level] or widths[level] % (known.get("num_heads") or known["num_head_channels"]):
            raise UserError(f"its {widths[level]} channels are not cut into attention heads by these flags")
    _check_given(sizes, flags, size)
    try:
        weights = renamed(state, sizes, levels, heads, known["use_new_attention_order"])
    except (RuntimeError, LookupError) as error:
        raise UserError(f"its weights are not shaped as guided-diffusion's: {str(error)[:100]}") from None
    arguments = {
        "img_resolution": size,
        "in_channels": 3,
        "label_dim": sizes.classes,
        "model_channels": sizes.width,
        "channel_mult": list(sizes.mult),
        "num_blocks": sizes.blocks,
        "attn_resolutions": [size >> level for level in sizes.attending],
        "dropout": known.get("dropout", 0.0),
    }
    steps = known["diffusion_steps"]
    process: Process = Cosine(steps) if known["noise_schedule"] == "cosine" else VP(steps=steps)
    if steps != 1000:  # told 0 to steps - 1, or that within 1000; preconditionings count to 999
        arguments["time_scale"] = (steps - 1) / 999 * (1000 / steps if known["rescale_timesteps"] else 1)
    settings: dict[str, Any] = {"process": process, "preconditioning": "iddpm" if isinstance(process, Cosine) else "vp"}
    for fine, coarse in pairwise(levels):
        for block in [f"enc.{coarse}_down", *([] if sizes.classifier else [f"dec.{fine}_up"])]:
            weights |= {f"{block}.{part}.resample_filter": separable_filter((1, 1)) for part in ("conv0", "skip")}
    if sizes.classifier:
        network: dict[str, Any] = {"class_path": "ersde_lit.networks.DhariwalClassifierEncoder"}
        network["init_args"] = arguments | {"label_dim": sizes.outputs}
        return ImportedClassifier("guided-diffusion's classifier", network, settings, weights, notes)
    if sizes.outputs not in (3, 6):
        raise UserError(f"it gives {sizes.outputs} channels, not 3, or 6 with --learn_sigma")
    if sizes.outputs == 6:
        outputs = {name: w for name, w in weights.items() if name.startswith("out_conv.")}
        weights |= {name: w[:3] for name, w in outputs.items()}
        dropped = sum(w[3:].numel() for w in outputs.values())
        notes.append(f"{dropped:,} parameters of learned variances are left out")
    attention = {"num_heads": known["num_heads"]} if "num_heads" in known else {}
    attention = attention or {"channels_per_head": known["num_head_channels"]}
    network = {"class_path": "ersde_lit.networks.DhariwalUNet"}
    network["init_args"] = arguments | attention | {"out_channels": 3}
    settings["prediction"] = "x0" if known["predict_xstart"] else "eps"
    return ImportedModel("guided-diffusion's denoiser", network, settings, weights, notes=notes)


def _flags(sizes: Sizes, given: GuidedFlags) -> tuple[dict[str, Any], list[str]]:
    """The flags, given, published or guided-diffusion's defaults, and notes of those that were not given."""
    own = sizes.width, sizes.mult, sizes.blocks
    known = (_CLASSIFIERS if sizes.classifier else _DENOISERS).get(own, {})
    flags = {**known, **given.given}
    if given.num_heads is not None:
        flags.pop("num_head_channels", None)
    elif given.num_head_channels is not None:
        flags.pop("num_heads", None)
    if sizes.classifier:
        flags |= _HEADS  # which classifiers always have
    needed = {"noise_schedule", "use_new_attention_order"} | (set() if sizes.classifier else {"image_size"})
    missing = sorted(needed - flags.keys())
    if not flags.keys() & {"num_heads", "num_head_channels"}:
        missing.append("num_heads or --num_head_channels")
    if missing:
        raise UserError(
            f"it is none of the published models (num_channels {own[0]}, channel_mult {list(own[1])}, "
            f"num_res_blocks {own[2]}): say --{' and --'.join(missing)}"
        )
    defaults = dict(_DEFAULTS)
    if flags.get("diffusion_steps", 1000) == 1000:
        defaults.pop("rescale_timesteps")  # does nothing
    if sizes.classifier:
        defaults.pop("predict_xstart")
    sources = {
        "as published": {name: value for name, value in flags.items() if name not in given.given},
        "as guided-diffusion does": {name: value for name, value in defaults.items() if name not in flags},
    }
    notes = [
        f"assumed, {how}: {', '.join(f'{name} {value}' for name, value in assumed.items())}"
        for how, assumed in sources.items()
        if assumed
    ]
    return {**_DEFAULTS, **flags}, notes


def _check_given(sizes: Sizes, given: GuidedFlags, size: int) -> None:
    """Raises ValueError where a flag says something else than the weights."""
    found = {
        "num_channels": sizes.width,
        "num_res_blocks": sizes.blocks,
        "channel_mult": ",".join(map(str, sizes.mult)),
        "attention_resolutions": ",".join(str(size >> level) for level in sizes.attending),
        "learn_sigma": sizes.outputs == 2 * sizes.channels,
        "class_cond": sizes.classes > 0,
        "resblock_updown": True,
        "use_scale_shift_norm": True,
    }
    if (text := given.attention_resolutions) is not None:  # some may be of levels that are not there
        asked = {size // int(resolution) for resolution in text.split(",")}
        if [level for level in range(len(sizes.mult)) if 2**level in asked] == [*sizes.attending]:
            found["attention_resolutions"] = text
    for name, value in given.given.items():
        if sizes.classifier and name in {*found, *_HEADS, "num_heads"}:
            raise UserError(f"--{name} is a flag of denoisers, and these are the weights of a classifier")
        if name in found and value != found[name]:
            raise UserError(f"--{name} {value} is not what its weights say, which is {found[name]}")
