"""What SongUNet and DhariwalUNet have in common."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from ersde_lit.networks import DhariwalUNet, SongUNet
from ersde_lit.networks.residual_unet import ResidualUNet
from ersde_lit.training.spec import build, describe

SMALL = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 4, "augment_dim": 9,
         "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}  # fmt: skip
NETWORKS = {
    "ddpmpp": (SongUNet, {**SMALL, "model_channels": 16}),
    "ncsnpp": (
        SongUNet,
        {**SMALL, "model_channels": 16, "embedding_type": "fourier", "encoder_type": "residual",
         "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
    ),
    "skips": (SongUNet, {**SMALL, "model_channels": 16, "encoder_type": "skip", "decoder_type": "skip"}),
    "adm": (DhariwalUNet, {**SMALL, "model_channels": 64}),
}  # fmt: skip
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name: str, **changes) -> ResidualUNet:
    """With the parts that start at zero, which would hide everything before them, at random weights instead."""
    torch.manual_seed(0)
    build, arguments = NETWORKS[name]
    net = build(**{**arguments, **changes})
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return net.eval()


def inputs(batch: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x, c_noise, augment = torch.randn(batch, 3, 8, 8), torch.randn(batch), torch.randn(batch, 9)
    return x, c_noise, torch.tensor([0, 3, -1, 1])[:batch], augment


@every_network
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    net, (x, c_noise, labels, augment) = network(name), inputs()
    alone = net(x[1:2], c_noise[1:2], labels[1:2], augment[1:2])
    torch.testing.assert_close(net(x, c_noise, labels, augment)[1:2], alone, rtol=1e-4, atol=1e-5)


@every_network
@torch.no_grad()
def test_every_condition_matters_and_minus_one_is_no_label(name: str) -> None:
    net, (x, c_noise, _, augment) = network(name), inputs(1)
    plain = net(x, c_noise)
    torch.testing.assert_close(net(x, c_noise, torch.tensor([-1])), plain)
    torch.testing.assert_close(net(x, c_noise, None, torch.zeros(1, 9)), plain)
    others = [net(x, c_noise + 0.1), net(x, c_noise, torch.tensor([2])), net(x, c_noise, None, augment)]
    assert min((other - plain).abs().max().item() for other in others) > 1e-3


def test_augmentation_it_cannot_be_told_of_is_refused() -> None:
    net, batch = network("adm", augment_dim=0), inputs()
    with pytest.raises(ValueError, match="set the network's augment_dim to 9"):
        net(*batch)


@every_network
@torch.no_grad()
def test_labels_are_dropped_in_training_alone(name: str) -> None:
    net, (x, c_noise, labels, _) = network(name, label_dropout=1.0, dropout=0.0), inputs()
    with_labels, without = net(x, c_noise, labels), net(x, c_noise)
    assert (with_labels - without).abs().max() > 1e-3
    torch.testing.assert_close(net.train()(x, c_noise, labels), without)


@every_network
def test_every_parameter_is_trained(name: str) -> None:
    net = network(name)
    net(*inputs()).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_network
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_blocks_over_float32_weights(name: str, dtype: torch.dtype) -> None:
    net, (x, *conditions) = network(name), inputs()
    y, exact = net(x.to(dtype), *conditions), net(x, *conditions)
    assert y.dtype == dtype
    assert (y.float() - exact).norm() < 10 * torch.finfo(dtype).eps * exact.norm()


@every_network
def test_autocast_leaves_the_embedding_in_float32(name: str) -> None:
    net, (x, *conditions) = network(name), inputs()
    exact, seen = net(x, *conditions), []
    net.map_layer1.register_forward_hook(lambda module, arguments, y: seen.append(y.dtype))
    net.enc["8x8_conv"].register_forward_hook(lambda module, arguments, y: seen.append(y.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x, *conditions)
    assert seen == [torch.float32, torch.bfloat16]
    assert 0 < (y.float() - exact).norm() < 0.05 * exact.norm()
    y.float().sum().backward()
    assert net.enc["8x8_conv"].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["ncsnpp", "adm"])
def test_one_graph_without_breaks(name: str) -> None:
    net, batch = network(name, channel_mult=[1], attn_resolutions=[8]), inputs()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch), net(*batch))


@every_network
def test_a_network_records_how_it_was_built(name: str) -> None:
    net = network(name)
    assert net.spec["init_args"] == NETWORKS[name][1]
    assert (net.image_shape, net.num_classes) == ((3, 8, 8), 4)
    twin = build(describe(net))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.eval()(*inputs()), net(*inputs()))
    assert deepcopy(net).spec == net.spec


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "ddpmpp",
            {"embedding_type": "learned"},
            "unknown embedding_type 'learned': choose one of positional, fourier",
        ),
        ("ddpmpp", {"encoder_type": "unet"}, "choose one of standard, skip, residual"),
        ("ddpmpp", {"decoder_type": "residual"}, "choose one of standard, skip"),
        ("ddpmpp", {"resample_filter": [1, 2, 1]}, "even number of taps"),
        ("ddpmpp", {"img_resolution": 9}, "img_resolution 9 does not allow 2 levels"),
        ("adm", {"channel_mult": []}, "does not allow 0 levels"),
        ("adm", {"label_dropout": 1.5}, "label_dropout is a probability, got 1.5"),
        ("adm", {"num_blocks": 0}, "num_blocks must be positive, got 0"),
        ("adm", {"model_channels": 200}, "equal normalisation groups"),
        ("adm", {"model_channels": 224, "channel_mult": [1, 1]}, "224 channels do not divide among 3 attention heads"),
    ],
)
def test_says_what_is_wrong(name: str, changes: dict, message: str) -> None:
    build, arguments = NETWORKS[name]
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build(**{**arguments, **changes})
