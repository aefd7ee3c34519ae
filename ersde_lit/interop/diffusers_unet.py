"""diffusers' UNet2DModel as a network of ours, and the folders that DDPMPipeline keeps one in."""

import inspect
import json
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.denoisers import VP, Cosine, Process, ScaledLinear
from ersde_lit.interop.model import ImportedModel
from ersde_lit.interop.safetensors_file import read_tensors
from ersde_lit.interop.torch_files import read_zip, state_dict
from ersde_lit.networks import Network

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.15


class DiffusersUNet(Network):
    """diffusers' UNet2DModel; where it also predicts variances, they are left out.

    Args:
        config: the arguments of UNet2DModel; sample_size is needed.
        steps: of the discrete process, whose step k it is told as the number k.

    Raises:
        ValueError: arguments that do not make such a network, or no diffusers.
    """

    def __init__(self, config: dict[str, Any], steps: int = 1000) -> None:
        super().__init__()
        try:
            from diffusers import UNet2DModel
        except ImportError:
            raise ValueError("this network is diffusers' UNet2DModel: pip install diffusers") from None
        unknown = config.keys() - inspect.signature(UNet2DModel.__init__).parameters.keys()
        if unknown:
            raise ValueError(f"UNet2DModel does not know {min(unknown)[:40]!r}: is diffusers too old for this network?")
        classes = config.get("num_class_embeds")
        match config.get("in_channels", 3), config.get("sample_size"):
            case (int(channels), [int(height), int(width)]) | (int(channels), int(height) as width):
                self.image_shape = (channels, height, width)
            case channels, size:
                raise ValueError(f"config needs sample_size and in_channels, got {size} and {channels}"[:120])
        if config.get("class_embed_type") is not None:
            raise ValueError("a UNet2DModel with class_embed_type takes no classes but other conditions")
        self.num_classes = classes or 0
        self.scale = (steps - 1) / 999  # preconditionings count to 999
        self.unet = cast(Any, UNet2DModel(**config))
        if classes:
            self.unet.class_embedding = Classes(classes, self.unet.class_embedding.embedding_dim)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """F: as of `Network`; labels -1, or none, are unconditional.

        Raises:
            ValueError: an augmentation vector, of which this network cannot be told.
        """
        if augment is not None:
            raise ValueError("a UNet2DModel cannot be told of augmentation: leave augment out")
        if self.num_classes and labels is None:
            labels = c_noise.new_full((len(x),), -1).long()
        step = (c_noise * self.scale).round()
        known = {"class_labels": labels} if self.num_classes else {}
        return self.unet(x, step, return_dict=False, **known)[0][:, : self.image_shape[0]]


class Classes(nn.Embedding):
    """An embedding of int64 labels [B] in which -1 is all zero."""

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels.clamp(min=0), self.weight) * (labels >= 0)[:, None].to(self.weight.dtype)


def read_diffusers(folder: Path) -> ImportedModel:
    """The model of a folder that DDPMPipeline.save_pretrained wrote; diffusers builds the network.

    Raises:
        ValueError: in one line, a folder of another pipeline, damaged files, a noising process that is not known here.
    """
    index = _json(folder / "model_index.json")
    if not isinstance(unet := index.get("unet"), list) or unet[-1:] != ["UNet2DModel"]:
        raise ValueError(f"{folder} holds a {str(index.get('_class_name'))[:40]}: only UNet2DModel can be imported")
    config, scheduler = _json(folder / "unet" / "config.json"), _json(folder / "scheduler" / "scheduler_config.json")
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        process, steps = _process(scheduler)
        prediction = _PREDICTIONS[scheduler.get("prediction_type", "epsilon")]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder}/scheduler: its values cannot be read: {str(error)[:100]}") from None
    settings = {
        "process": process,
        "preconditioning": "iddpm" if isinstance(process, Cosine) else "vp",
        "prediction": prediction,
    }
    network = {
        "class_path": f"{DiffusersUNet.__module__}.{DiffusersUNet.__qualname__}",
        "init_args": {"config": config, "steps": steps},
    }
    name = str(scheduler.get("_class_name"))[:40]
    return ImportedModel(f"diffusers' UNet2DModel, {name}", network, settings, _weights(folder / "unet"))


def _process(scheduler: dict[str, Any]) -> tuple[Process, int]:
    """The noising process of a scheduler's configuration, whose defaults are those of DDPMScheduler; its steps."""
    if scheduler.get("trained_betas") is not None or scheduler.get("rescale_betas_zero_snr"):
        raise ValueError("a scheduler with trained_betas or rescale_betas_zero_snr cannot be imported")
    steps, kind = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule", "linear")
    low, high = scheduler.get("beta_start", 0.0001) * steps, scheduler.get("beta_end", 0.02) * steps
    if "num_train_timesteps" not in scheduler or kind not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        raise ValueError(
            f"a {str(scheduler.get('_class_name'))[:40]} with beta_schedule {str(kind)[:40]!r} cannot be imported: "
            "only one of discrete steps, linear, scaled_linear or squaredcos_cap_v2"
        )
    if kind == "squaredcos_cap_v2":
        return Cosine(steps), steps
    return (VP if kind == "linear" else ScaledLinear)(low, high, steps), steps


def _weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} holds no {_WEIGHTS[0]}")
    tensors = read_tensors(path)[1] if path.suffix == ".safetensors" else state_dict(read_zip(path), path)
    return {f"unet.{_new_name(name)}": tensor for name, tensor in tensors.items()}


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
        raise ValueError(f"no folder of diffusers' DDPMPipeline: {path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: it is no JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object")
    return content
