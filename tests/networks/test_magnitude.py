import math

import pytest
import torch

from ersde_lit.networks.edm2 import EDM2Block
from ersde_lit.networks.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalise


def magnitude(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize(
    "layer",
    [
        lambda x: MPConv(64, 48, 3)(x)[..., 1:-1, 1:-1],  # at the border zeros come in
        lambda x: MPConv(64, 128, 1)(x),
        lambda x: MPConv(64, 128)(x[..., 0, 0]),
        mp_silu,
        lambda x: mp_sum(x, torch.randn_like(x), 0.3),
        lambda x: mp_cat(x, torch.randn(64, 16, 8, 8), 0.3),
        lambda x: normalise(5 * x, dim=1),
        lambda x: MPFourier(500)(5 * x[:, 0, 0, 0]),
    ],
    ids=["conv3", "conv1", "linear", "silu", "sum", "cat", "pixel_norm", "fourier"],
)
def test_every_layer_keeps_magnitude_one(layer) -> None:
    torch.manual_seed(0)
    assert magnitude(layer(torch.randn(64, 64, 8, 8))) == pytest.approx(1, abs=0.04)


def test_concatenation_weighs_its_parts_by_the_balance_not_by_their_channels() -> None:
    a, b = torch.randn(64, 96, 4, 4), torch.randn(64, 32, 4, 4)
    both = mp_cat(a, b, 0.25)
    assert both[:, 96:].square().sum() / both[:, :96].square().sum() == pytest.approx((0.25 / 0.75) ** 2, rel=0.05)


def test_the_size_of_a_weight_does_not_count() -> None:
    conv, x = MPConv(8, 8, 3).eval(), torch.randn(2, 8, 4, 4)
    before = conv(x)
    with torch.no_grad():
        conv.weight *= torch.rand(8, 1, 1, 1) + 3
    torch.testing.assert_close(conv(x), before, rtol=1e-3, atol=1e-3)  # up to the eps of the normalisation


def test_gradients_are_orthogonal_to_weights_of_magnitude_one() -> None:
    """So updates turn the weights alone: forced normalisation undoes their growth, and the rate sets the turn."""
    conv = MPConv(8, 4, 3).double()
    conv(torch.randn(2, 8, 4, 4, dtype=torch.float64)).pow(3).sum().backward()
    weight, gradient = conv.weight.detach(), conv.weight.grad
    across = (weight * gradient).flatten(1).sum(1).abs() / (
        weight.flatten(1).norm(dim=1) * gradient.flatten(1).norm(dim=1)
    )
    assert across.max() < 2e-4  # of the eps
    assert magnitude(weight[0]) == pytest.approx(1, abs=2e-4)


def test_weights_are_normalised_in_training_alone() -> None:
    conv = MPConv(8, 4, 3)
    drawn = conv.weight.detach().clone()
    conv.eval()(torch.randn(2, 8, 4, 4))
    assert torch.equal(conv.weight, drawn)
    conv.train()(torch.randn(2, 8, 4, 4))
    torch.testing.assert_close(conv.weight.flatten(1).norm(dim=1), torch.full((4,), math.sqrt(72)), rtol=2e-4, atol=0)


@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize(("channels", "direction"), [(64, None), (96, None), (64, "up")])
def test_a_block_keeps_the_variance_of_its_input(decoder: bool, channels: int, direction: str | None) -> None:
    torch.manual_seed(0)
    block = EDM2Block(64, channels, 32, decoder, direction)
    with torch.no_grad():
        y = block(torch.randn(8, 64, 16, 16), torch.randn(8, 32))
    assert y.var() == pytest.approx(1, abs=0.1)


def test_attention_of_equal_pixels_keeps_the_variance_too() -> None:
    """Attention averages values: only where they agree is their magnitude kept, as the paper notes of random data."""
    torch.manual_seed(0)
    block = EDM2Block(64, 64, 32, decoder=False, attention=True, channels_per_head=32, res_balance=0.0)
    with torch.no_grad():
        y = block(torch.randn(64, 64, 1, 1).expand(-1, -1, 4, 4), torch.randn(64, 32))
    assert y.var() == pytest.approx(1, abs=0.1)
