"""Parity with the published networks: sizes, state-dict names, outputs.

tests/data/edm_networks.npz holds inputs and outputs of the public implementation (github.com/NVlabs/edm, run in float32
on a CPU at reduced widths), with the names and shapes of its parameters and with its buffers, but no weights: they are
`weights()` of these names and shapes, in the file's order.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hashed_weights import uniform
from torch import Tensor

from ersde_lit import networks
from ersde_lit.denoisers import VE, VP, Denoiser
from ersde_lit.networks import DhariwalUNet, Network, SongUNet

VECTORS = dict(np.load(Path(__file__).parents[1] / "data" / "edm_networks.npz"))
CASES = json.loads(str(VECTORS["cases"]))  # name -> class_name, init_args, parameters (name -> shape)

NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
          "resample_filter": [1, 3, 3, 1]}  # fmt: skip
CIFAR = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "augment_dim": 9, "channel_mult": [2, 2, 2]}
FFHQ = {**CIFAR, "img_resolution": 64, "channel_mult": [1, 2, 2, 2]}
IMAGENET = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000}


def weights(parameters: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights of variance 1 / fan_in, norms near 1, biases near 0."""
    state = {}
    for i, (name, shape) in enumerate(parameters.items()):
        u = uniform(tuple(shape), i)
        if len(shape) > 1:
            state[name] = u * math.sqrt(3 / math.prod(shape[1:]))
        else:
            state[name] = 0.2 * u + ("norm" in name and name.endswith("weight"))
    return state


def load(case: str) -> Network:
    description = CASES[case]
    buffers = {
        name.removeprefix(f"{case}/buffers/"): torch.from_numpy(value)
        for name, value in VECTORS.items()
        if name.startswith(f"{case}/buffers/")
    }
    network = getattr(networks, description["class_name"])(**description["init_args"])
    network.load_state_dict({**weights(description["parameters"]), **buffers}, strict=True)
    return network.eval()


def vector(name: str) -> Tensor | None:
    return torch.from_numpy(VECTORS[name]) if name in VECTORS else None


def assert_same(ours: Tensor, published: Tensor | None) -> None:
    assert published is not None
    torch.testing.assert_close(ours, published, rtol=0, atol=1e-5 * published.abs().max().item())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_outputs_of_the_published_weights(case: str) -> None:
    x, c_noise = vector(f"{case}/x"), vector(f"{case}/c_noise")
    y = load(case)(x, c_noise, vector(f"{case}/labels"), vector(f"{case}/augment"))
    assert_same(y, vector(f"{case}/y"))


@pytest.mark.parametrize(
    ("name", "process", "preconditioning", "prediction"),
    [("edm", VE(), "edm", "edm"), ("vp", VP(), "vp", "eps"), ("ve", VE(), "ve", "score")],
)
@torch.no_grad()
def test_published_denoisers(name: str, process: VE | VP, preconditioning: str, prediction: str) -> None:
    case = "ddpmpp_cond"
    denoiser = Denoiser(load(case), process, preconditioning, prediction)
    sigma, x = vector(f"{case}/sigma"), vector(f"{case}/x")
    assert_same(denoiser(x * sigma.view(-1, 1, 1, 1), sigma, vector(f"{case}/labels")), vector(f"{case}/D/{name}"))


@pytest.mark.parametrize(
    ("build", "arguments", "parameters", "keys", "buffers"),
    [
        (SongUNet, {**CIFAR, "label_dim": 10}, 55_735_299, 427, 8),
        (SongUNet, CIFAR, 55_733_891, 425, 8),
        (SongUNet, {**CIFAR, **NCSNPP, "label_dim": 10}, 56_400_643, 434, 11),
        (SongUNet, {**CIFAR, **NCSNPP}, 56_397_827, 432, 11),
        (SongUNet, FFHQ, 61_805_571, 553, 12),
        (SongUNet, {**FFHQ, **NCSNPP}, 62_761_091, 563, 16),
        (DhariwalUNet, IMAGENET, 295_899_267, 553, 12),
    ],
    ids=["cifar10-cond-vp", "cifar10-uncond-vp", "cifar10-cond-ve", "cifar10-uncond-ve", "ffhq-vp", "ffhq-ve", "adm"],
)
def test_published_sizes(build: type[Network], arguments: dict, parameters: int, keys: int, buffers: int) -> None:
    with torch.device("meta"):
        network = build(**arguments)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == keys
    assert len(list(network.buffers())) == buffers
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
