"""Pickles of the structure that EDM's and EDM2's snapshots have, made of our own networks."""

import pickle
import sys
from collections import OrderedDict
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from ersde_lit.denoisers.denoiser import Uncertainty
from ersde_lit.networks import DhariwalUNet, EDM2UNet, SongUNet

SONG = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.1}
NCSN = {**SONG, "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1]}  # fmt: skip
SKIP = {**SONG, "encoder_type": "skip", "decoder_type": "skip", "augment_dim": 9}
ADM = {"model_channels": 32, "channel_mult": [1, 4], "num_blocks": 1, "attn_resolutions": [4]}
EDM2 = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8}
NETWORKS = {
    "ddpmpp": ("SongUNet", SONG),
    "ncsnpp": ("SongUNet", NCSN),
    "skip": ("SongUNet", SKIP),
    "adm": ("DhariwalUNet", ADM),
}
SOURCE = "import torch\nclass SongUNet(torch.nn.Module): ...\n"


class Persistent:
    """Pickled as an object whose class carries its source."""

    def __init__(self, cls: str, state: dict[str, Any], source: str = SOURCE) -> None:
        self.cls, self.state, self.source = cls, state, source

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.cls, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


class EasyDict(dict):
    """Their dictionary, with its items as attributes too."""


EasyDict.__module__ = "dnnlib.util"


@contextmanager
def their_names():
    """Modules of their names, so that `pickle` can refer to what is in them."""
    package, module = ModuleType("torch_utils"), ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("it was called")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util = ModuleType("dnnlib.util")
    util.EasyDict = EasyDict
    made = {
        "torch_utils": package,
        "torch_utils.persistence": module,
        "dnnlib": ModuleType("dnnlib"),
        util.__name__: util,
    }
    sys.modules |= made
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def state(parameters=(), buffers=(), modules=(), kwargs=None, **others) -> dict[str, Any]:
    """The attributes of a module of theirs."""
    return {
        "training": False,
        "_parameters": dict(parameters),
        "_buffers": dict(buffers),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_is_full_backward_hook": None,
        "_modules": dict(modules),
        "skip_scale": np.sqrt(0.5),  # their blocks keep numpy's numbers
        "_init_args": (),
        "_init_kwargs": kwargs or {},
        **others,
    }


def tree(module: nn.Module, source: str = SOURCE) -> Any:
    """A module of ours as one of theirs."""
    children = {name: tree(child, source) for name, child in module._modules.items() if child is not None}
    if isinstance(module, nn.ModuleDict):
        plain = nn.ModuleDict().requires_grad_(False)
        plain.__dict__["_modules"] = children
        return plain
    parameters = {n: None if p is None else nn.Parameter(p.detach(), False) for n, p in module._parameters.items()}
    buffers = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
    own = state(parameters, buffers, children, {"init": {"init_weight": np.sqrt(1 / 3)}})
    return Persistent(type(module).__name__, own, source)


def network(model_type: str, kwargs: dict[str, Any], classes: int = 0, outputs: int = 3):
    """With weights of about unit gain."""
    cls = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[model_type]
    torch.manual_seed(0)
    made = cls(img_resolution=8, in_channels=3, out_channels=outputs, label_dim=classes, **kwargs).eval()
    for weight in made.parameters():
        scale = 0.5 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.3
        weight.data = torch.randn(weight.shape) * scale + (weight.ndim == 1)
    return made.requires_grad_(False)


def snapshot(model: nn.Module, precond: str, source: str = SOURCE, modules=None, **kwargs) -> dict[str, Any]:
    """What is pickled, of a network under one of their preconditionings."""
    inner = {"model": tree(model, source)} if modules is None else modules
    keywords = {"img_resolution": 8, "img_channels": 3, **kwargs}
    ema = Persistent(precond, state(modules=inner, kwargs=keywords, sigma_data=0.5), source)
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "_init_args": (), "_init_kwargs": {}}, source)
    return {"ema": ema, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"path": "data.zip"}}


def edm2_model(classes: int = 0, channels: int = 3) -> tuple[EDM2UNet, Uncertainty]:
    """Network and uncertainty, whose weights and gains are random."""
    torch.manual_seed(0)
    made = EDM2UNet(8, channels, classes, **EDM2).eval().requires_grad_(False), Uncertainty().requires_grad_(False)
    for name, weight in made[0].named_parameters():
        if name.endswith("gain"):
            weight.normal_()
    return made


def edm2_snapshot(network: nn.Module, uncertainty: nn.Module, encoder: Any = None, modules=(), **kwargs) -> EasyDict:
    """What EDM2 pickles: weights of half precision; `kwargs` are more arguments, or others."""
    fourier, linear = uncertainty.half().children()
    inner = {"unet": network.half(), "logvar_fourier": fourier, "logvar_linear": linear} | dict(modules)
    channels, size, _ = network.image_shape
    interface = {"img_resolution": size, "img_channels": channels, "label_dim": network.num_classes}
    keywords = {"use_fp16": True, "dropout": 0.1, **interface, **EDM2, **kwargs}
    ema = Persistent("Precond", state(modules={n: tree(m) for n, m in inner.items()}, kwargs=keywords))
    loss = Persistent("EDM2Loss", {"P_mean": -0.8, "P_std": 1.6, "_init_args": (), "_init_kwargs": {"P_mean": -0.8}})
    encoder = Persistent("StandardRGBEncoder", {"_init_args": (), "_init_kwargs": {}}) if encoder is None else encoder
    return EasyDict(encoder=encoder, dataset_kwargs=EasyDict(path="data.zip"), loss_fn=loss, ema=ema)


def vae_encoder(**changes) -> Persistent:
    """What EDM2 pickles beside a model of latents: the published statistics, as scale and bias."""
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    bias = -np.float32([5.81, 3.25, 0.12, -2.15]) * scale
    own = {"vae_name": "stabilityai/sd-vae-ft-mse", "scale": scale, "bias": bias, "batch_size": 8, "_vae": None}
    return Persistent("StabilityVAEEncoder", {"_init_args": (), "_init_kwargs": {}, **own, **changes})


def dumps(content: Any, protocol: int = 4) -> bytes:
    with their_names():
        return pickle.dumps(content, protocol)
