"""Reader for the folders of diffusers' pipelines of a UNet2DModel."""

import json
import re
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.interop.weights.diffusers_process import FAMILIES, PIPELINES, trained_with
from ersde_lit.interop.weights.diffusers_unet import DiffusersScoreUNet, DiffusersUNet
from ersde_lit.interop.weights.model import ImportedModel
from ersde_lit.interop.weights.safetensors_file import read_tensors
from ersde_lit.interop.weights.torch_files import read_torch, state_dict
from ersde_lit.training.weights import plain_name

# One file or the index of shards, perhaps of a variant: NAME.fp16.safetensors, NAME.safetensors.index.fp16.json.
_WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?\.(safetensors|bin)(?:\.index(?:\.(\w+))?\.json)?")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.15


def read_diffusers(folder: Path) -> ImportedModel:
    """The model of a folder of a pipeline's save_pretrained, whose network diffusers builds.

    Raises:
        UserError: a folder of another pipeline, damaged files, or an unknown noising process.
    """
    index = _json(folder / "model_index.json")
    pipeline, kept = str(index.get("_class_name"))[:60], index.get("unet")
    if not isinstance(kept, list) or kept[-1:] != ["UNet2DModel"]:
        raise UserError(f"{folder} holds a {pipeline}: only UNet2DModel can be imported")
    if pipeline not in PIPELINES:
        raise UserError(f"{folder} holds a {pipeline}: only {', '.join(PIPELINES)} can be imported")
    config, options = _json(folder / "unet" / "config.json"), _json(folder / "scheduler" / "scheduler_config.json")
    if (found := config.get("_class_name", "UNet2DModel")) != "UNet2DModel":
        raise UserError(f"{folder}/unet is a {str(found)[:40]}: only UNet2DModel can be imported")
    scheduler = _scheduler(index, options, pipeline)
    for part in (kept, index.get("scheduler")):
        if isinstance(part, list) and str(part[0]).partition(".")[0] not in ("diffusers", "ersde_lit"):
            raise UserError(f"{folder}: the {str(part[-1])[:60]} is of {str(part[0])[:40]!r}, not of diffusers")
    settings, notes = trained_with(scheduler, options)
    arguments: dict[str, Any] = {"config": {name: v for name, v in config.items() if not name.startswith("_")}}
    if (levels := settings["process"].levels) is not None:
        arguments["steps"] = len(levels)
    cls = DiffusersUNet if "steps" in arguments else DiffusersScoreUNet
    network = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
    weights, more = _weights(folder / "unet")
    return ImportedModel(f"diffusers' UNet2DModel, {scheduler}", network, settings, weights, notes=[*more, *notes])


def _scheduler(index: dict[str, Any], options: dict[str, Any], pipeline: str) -> str:
    """The class of the scheduler, which must be for the pipeline's models."""
    listed = index.get("scheduler")
    written = [options.get("_class_name"), listed[-1] if isinstance(listed, list) and listed else None]
    names = [str(name) for name in written if name is not None] or ["None"]
    for name in names:
        if FAMILIES.get(name) != PIPELINES[pipeline]:
            raise UserError(f"a {pipeline} with the scheduler {name[:60]!r} cannot be imported")
    return names[0]


def _weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The network's weights, and notes of which they are."""
    path, notes = _file(folder)
    tensors, more = (_shards(path), []) if path.suffix == ".json" else _tensors(path)
    return {f"unet.{_new_name(name)}": tensor for name, tensor in tensors.items()}, [*notes, *more]


def _file(folder: Path) -> tuple[Path, list[str]]:
    """The file of weights, or the index of their shards, and notes; a variant only if there is nothing else."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if (match := _WEIGHTS.fullmatch(path.name)) and path.is_file():
            found.setdefault(match[1] or match[3] or "", []).append(path)
    if not found:
        raise UserError(f"{folder} holds no diffusion_pytorch_model.safetensors")
    variant = min(found)
    if variant and len(found) > 1:
        raise UserError(f"{folder} holds the variants {', '.join(found)[:100]}: leave one of them there")
    notes = [f"the weights are the variant {variant[:40]!r}, as there is no other"] if variant else []
    return min(found[variant], key=lambda path: (".bin" in path.name, path.suffix == ".json")), notes


def _shards(path: Path) -> dict[str, Tensor]:
    """The weights that an index names, each from its file."""
    places = _json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{path} is damaged: it has no weight_map of file names")
    files: dict[str, dict[str, Tensor]] = {}
    for name in dict.fromkeys(places.values()):
        if PurePath(name).name != name or "\\" in name or not name.endswith((".safetensors", ".bin")):
            raise UserError(f"{path} refused: {name[:80]!r} is no name of a file of weights in the same folder")
        if not (path.parent / name).is_file():
            raise UserError(f"{path.parent} holds no {name[:80]}, which {path.name} names")
        files[name] = _tensors(path.parent / name)[0]
    lacking = [name for name, file in places.items() if plain_name(name) not in files[file]]
    if lacking:
        raise UserError(f"{path.parent / places[lacking[0]]} lacks the weight {lacking[0][:80]!r}")
    return {plain_name(name): files[file][plain_name(name)] for name, file in places.items()}


def _tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    content = read_tensors(path)[1] if path.suffix == ".safetensors" else read_torch(path)
    return state_dict(content, path)


def _new_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    if ".attentions." in name and part in _OLD_ATTENTION:
        return f"{parent}.{_OLD_ATTENTION[part]}.{kind}"
    return name


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"no folder of diffusers' DDPMPipeline: {path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is no JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it is no JSON object")
    return content
