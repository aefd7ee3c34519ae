"""Parity with the published EDM2 network, and what training does to its weights.

tests/data/edm2_networks.npz holds outputs of the public implementation (github.com/NVlabs/edm2, float32, CPU, reduced
widths, eval mode) with `weights()` of its names and shapes; its sigmas are exp(4 c_noise), sigma_data is 0.5.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hashed_weights import uniform
from torch import Tensor

from ersde_lit.denoisers import Denoiser
from ersde_lit.networks import EDM2UNet

VECTORS = dict(np.load(Path(__file__).parents[1] / "data" / "edm2_networks.npz"))
CASES = json.loads(str(VECTORS["cases"]))  # name -> init_args, parameters (name -> shape)
X = 1.2 * uniform((2, 3, 16, 16), 900)
EPS = uniform((2, 3, 16, 16), 901)


def weights(parameters: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights of magnitude 1, gains between 0.1 and 0.9."""
    hashes = {name: uniform(tuple(shape) or (1,), i) for i, (name, shape) in enumerate(parameters.items())}
    return {name: 1.732 * u if parameters[name] else 0.5 + 0.4 * u[0] for name, u in hashes.items()}


def load(case: str) -> Denoiser:
    """With the names of `Denoiser(uncertainty=True)`."""
    state = weights(CASES[case]["parameters"])
    state |= {name: vector(case, f"buffers/{name}") for name in ("unet.emb_fourier.freqs", "unet.emb_fourier.phases")}
    state |= {f"logvar_fourier.{name}": vector(case, f"buffers/logvar_fourier.{name}") for name in ("freqs", "phases")}
    denoiser = Denoiser(EDM2UNet(**CASES[case]["init_args"]), uncertainty=True)
    renamed = {name.replace("unet.", "network.").replace("logvar_", "uncertainty."): w for name, w in state.items()}
    denoiser.load_state_dict(renamed, strict=True)
    return denoiser.eval()


def vector(case: str, name: str) -> Tensor | None:
    return torch.from_numpy(VECTORS[f"{case}/{name}"]) if f"{case}/{name}" in VECTORS else None


def assert_same(ours: Tensor, published: Tensor | None) -> None:
    assert published is not None
    torch.testing.assert_close(ours, published, rtol=0, atol=1e-5 * published.abs().max().item())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_outputs_of_the_published_network(case: str) -> None:
    denoiser, labels, c_noise = load(case), vector(case, "labels"), vector(case, "c_noise")
    sigma = (4 * c_noise).exp()
    assert_same(denoiser.network(X, c_noise, labels), vector(case, "y"))
    assert_same(denoiser(X * sigma.view(-1, 1, 1, 1), sigma, labels), vector(case, "D"))
    assert_same(denoiser.uncertainty(sigma), vector(case, "logvar"))
    assert_same(denoiser.loss(X, sigma, EPS, labels), vector(case, "loss"))


@torch.no_grad()
def test_an_image_without_a_label_has_a_class_vector_of_zeros() -> None:
    network, c_noise = load("cond").network, vector("cond", "c_noise")
    assert_same(network(X, c_noise), vector("cond", "y_unlabelled"))
    assert_same(network(X, c_noise, torch.tensor([-1, -1])), vector("cond", "y_unlabelled"))


@pytest.mark.parametrize(
    ("channels", "parameters"),  # of the network with its uncertainty's 128 weights
    [(128, 124_710_949), (192, 280_209_381), (256, 497_803_173), (320, 777_492_325), (384, 1_119_276_837)],
)
def test_published_sizes(channels: int, parameters: int) -> None:
    with torch.device("meta"):
        denoiser = Denoiser(EDM2UNet(64, 3, 1000, model_channels=channels), uncertainty=True)
    assert sum(weight.numel() for weight in denoiser.parameters()) == parameters
    assert len(denoiser.state_dict()) == 203


def small(**changes) -> EDM2UNet:
    arguments = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
                 "channels_per_head": 16}  # fmt: skip
    return EDM2UNet(8, 1, 0, **{**arguments, **changes})


def test_it_starts_at_zero_and_learns_from_all_its_weights() -> None:
    network = small()
    x, c_noise = torch.randn(4, 1, 8, 8), torch.randn(4)
    assert not network(x, c_noise).any()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.fill_(0.5) if name.endswith("gain") else None
    network(x, c_noise).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_activations_are_clipped() -> None:
    network, largest = small(clip_act=0.1), []
    for block in network.dec.values():
        block.register_forward_hook(lambda *args: largest.append(args[-1].abs().max().item()))
    network(torch.randn(4, 1, 8, 8), torch.randn(4))
    assert len(largest) == 7
    assert max(largest) == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_computes_in_the_dtype_of_its_input(dtype: torch.dtype) -> None:
    network = small().eval()
    with torch.no_grad():
        network.out_gain.fill_(1.0)
        x, c_noise = torch.randn(4, 1, 8, 8), torch.randn(4)
        y, expected = network(x.to(dtype), c_noise), network(x, c_noise)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("arguments", [{"channel_mult": [1, 1, 1, 1, 1]}, {"channel_mult": []}])
def test_resolutions_that_cannot_be_halved_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="does not allow"):
        small(**arguments)


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="do not divide among 3 attention heads"):
        small(channels_per_head=10)


def test_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="augment"):
        small()(torch.randn(2, 1, 8, 8), torch.randn(2), augment=torch.zeros(2, 9))
