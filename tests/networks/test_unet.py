from copy import deepcopy

import pytest
import torch

from ersde_lit.networks import Network, UNet
from ersde_lit.training.spec import build, describe

SMALL = {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [1], "head_width": 16}


def randomised(net: UNet) -> UNet:
    """Its last convolution starts at zero, which would hide everything before it."""
    torch.nn.init.normal_(net.leave[-1].weight, std=0.1)
    for module in net.modules():
        if hasattr(module, "conv_out"):
            torch.nn.init.normal_(module.conv_out.weight, std=0.1)
        if hasattr(module, "project"):
            torch.nn.init.normal_(module.project.weight, std=0.1)
    return net.eval()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 13, 20)])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_returns_the_shape_it_takes(shape: tuple[int, int, int], patch_size: int) -> None:
    net = UNet(shape, 4, patch_size=patch_size, **SMALL)
    x = torch.randn(3, *shape)
    assert net(x, torch.randn(3), torch.tensor([-1, 0, 3])).shape == x.shape


def test_an_image_does_not_depend_on_its_batch() -> None:
    net = randomised(UNet((1, 8, 8), 4, **SMALL))
    x, c, labels = torch.randn(5, 1, 8, 8), torch.randn(5), torch.tensor([0, 1, 2, 3, -1])
    torch.testing.assert_close(net(x, c, labels)[2:3], net(x[2:3], c[2:3], labels[2:3]), rtol=1e-4, atol=1e-5)


def test_noise_level_and_label_matter_and_label_minus_one_is_no_label() -> None:
    net = randomised(UNet((1, 8, 8), 4, **SMALL))
    x, c = torch.randn(1, 1, 8, 8), torch.zeros(1)
    plain = net(x, c)
    assert torch.equal(net(x, c, torch.tensor([-1])), plain)
    one, two = net(x, c, torch.tensor([0])), net(x, c, torch.tensor([1]))
    assert (one - plain).abs().max() > 1e-3 < (one - two).abs().max()
    assert (net(x, c + 1) - plain).abs().max() > 1e-3


def test_every_parameter_is_trained() -> None:
    net = randomised(UNet((1, 8, 8), 4, **SMALL))
    net(torch.randn(2, 1, 8, 8), torch.randn(2), torch.tensor([0, 1])).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_starts_at_zero() -> None:
    assert not UNet((1, 8, 8), **SMALL)(torch.randn(2, 1, 8, 8), torch.randn(2)).any()


def test_a_network_records_how_it_was_built() -> None:
    net = UNet((1, 8, 8), num_classes=4, **SMALL)
    assert net.spec["class_path"] == "ersde_lit.networks.unet.UNet"
    assert net.spec["init_args"] == {"image_shape": (1, 8, 8), "num_classes": 4, **SMALL}
    twin = build(describe(net))
    assert isinstance(twin, Network)
    twin.load_state_dict(net.state_dict())
    assert deepcopy(net).spec == net.spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (8, 8)}, "channels, height, width"),
        ({"image_shape": (1, 8, 8), "width": 12}, "multiple of 8"),
        ({"image_shape": (1, 8, 8), "multipliers": []}, "one level at least"),
        ({"image_shape": (1, 8, 8), "patch_size": 0}, "must be positive"),
        ({"image_shape": (1, 8, 8), "attention": [5]}, r"levels 0 \.\. 2, got \[5\]"),
        ({"image_shape": (1, 8, 8), "width": 24, "head_width": 32}, "multiple of head_width"),
        (
            {"image_shape": (1, 8, 8), "width": 24, "attention": [], "head_width": 32},
            "the middle of the network always has",
        ),
    ],
)
def test_says_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**arguments)


def test_augmentation_is_told_or_refused() -> None:
    x, c_noise = torch.randn(2, 1, 4, 4), torch.zeros(2)
    plain, told = (randomised(UNet((1, 4, 4), **SMALL, augment_dim=k)) for k in (0, 9))
    with pytest.raises(ValueError, match="augment_dim"):
        plain(x, c_noise, augment=torch.zeros(2, 9))
    torch.testing.assert_close(told(x, c_noise), told(x, c_noise, augment=torch.zeros(2, 9)))
    assert not torch.allclose(told(x, c_noise), told(x, c_noise, augment=torch.ones(2, 9)), atol=1e-4)
