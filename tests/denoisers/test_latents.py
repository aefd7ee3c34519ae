import pytest
import torch
from autoencoder import LATENTS
from tiny import network

from ersde_lit.denoisers import Autoguidance, ClassifierFree, Denoiser, EpsilonScaling, Latents
from ersde_lit.training import DiffusionModule
from ersde_lit.training.spec import build


def test_raw_undoes_the_scaling_of_training() -> None:
    raw = torch.randn(2, 4, 3, 3) * 4 + 1
    scale = 0.5 / torch.tensor(LATENTS.std).view(-1, 1, 1)
    bias = -torch.tensor(LATENTS.mean).view(-1, 1, 1) * scale
    torch.testing.assert_close(LATENTS.raw(scale * raw + bias), raw)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (((0.0,), (1.0, 1.0)), "a mean and a std a channel, got 1 and 2"),
        (((0.0,), (0.0,)), "cannot be"),
        (((0.0,), (1.0,), float("inf")), "cannot be"),
        (((float("nan"),), (1.0,)), "cannot be"),
    ],
)
def test_statistics_that_are_none_are_refused(given: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Latents(*given)


def test_a_denoiser_and_its_wrappers_know_their_latents() -> None:
    denoiser = Denoiser(network(image_shape=(4, 4, 4)), latents=LATENTS)
    assert EpsilonScaling(ClassifierFree(denoiser, 2.0), 1.005).latents == LATENTS
    assert Denoiser(network()).latents is None
    with pytest.raises(ValueError, match="the latents have 4 channels, the network's 1"):
        Denoiser(network(), latents=LATENTS)


@pytest.mark.parametrize("other", [None, Latents((0.0,) * 4, (2.0,) * 4)])
def test_a_guide_must_be_of_the_same_latents(other: Latents | None) -> None:
    denoiser, guide = (Denoiser(network(image_shape=(4, 4, 4)), latents=each) for each in (LATENTS, other))
    with pytest.raises(ValueError, match="its latents is"):
        Autoguidance(denoiser, guide, 2.0)
    Autoguidance(denoiser, Denoiser(network(image_shape=(4, 4, 4)), latents=LATENTS), 2.0)


def test_a_module_keeps_them_in_its_description() -> None:
    module = DiffusionModule(network(image_shape=(4, 4, 4)), latents=LATENTS)
    assert build(module.spec["latents"]) == LATENTS == module.ema_denoiser.latents
    other = DiffusionModule(network(image_shape=(4, 4, 4)))
    assert other.differences({"ersde_lit": module.spec}).keys() == {"latents"}
