import math

import numpy as np
import pytest
import torch
from hashed_weights import hashed
from PIL import Image
from torch import Tensor, nn

from ersde_lit.metrics import DINOv2, features_for
from ersde_lit.metrics.dinov2 import VisionTransformer

WIDTH, DEPTH = 128, 2


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.device("meta"):
        network = VisionTransformer(WIDTH, DEPTH)
    state = hashed({name: [*value.shape] for name, value in network.state_dict().items()})
    state["pos_embed"] = state["pos_embed"] * 20  # as large as the patches
    return {name: 1 + value if name.endswith("gamma") else value for name, value in state.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("weights") / "dinov2.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def net(weights) -> DINOv2:
    return DINOv2(weights)


def some_images(n: int, size: tuple[int, int] = (32, 32), channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_torch(state: dict[str, Tensor], x: Tensor, positions: Tensor) -> Tensor:
    """The same network of torch's own layers, whose last weights have the scales of the branches in them."""
    conv = nn.functional.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), conv.flatten(2).mT], dim=1) + positions
    for i in range(DEPTH):
        of = {name.removeprefix(f"blocks.{i}."): value for name, value in state.items()}
        layer = nn.TransformerEncoderLayer(
            WIDTH, WIDTH // 64, 4 * WIDTH, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        scaled = {
            f"{theirs}.{part}": of[f"{ours}.{part}"] * (of[scale] if part == "bias" else of[scale][:, None])
            for theirs, ours, scale in (
                ("self_attn.out_proj", "attn.proj", "ls1.gamma"),
                ("linear2", "mlp.fc2", "ls2.gamma"),
            )
            for part in ("weight", "bias")
        }
        plain = {
            f"{theirs}{part}": of[f"{ours}.{part}"]
            for theirs, ours in (("norm1.", "norm1"), ("norm2.", "norm2"), ("linear1.", "mlp.fc1"),
                                 ("self_attn.in_proj_", "attn.qkv"))
            for part in ("weight", "bias")
        }  # fmt: skip
        layer.load_state_dict({**scaled, **plain})
        x = layer(x)
    return nn.functional.layer_norm(x[:, 0], (WIDTH,), state["norm.weight"], state["norm.bias"], 1e-6)


@torch.no_grad()
def test_features_are_those_of_torchs_layers(net, state) -> None:
    x = torch.randn(2, 3, 224, 224)
    expected = by_torch(state, x, net.net.positions(16))
    torch.testing.assert_close(net.net(x), expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_features_are_those_of_the_public_code(net) -> None:
    """Of facebookresearch/dinov2's DinoVisionTransformer with these weights, as EDM2 calls it."""
    h, w = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = torch.stack([(h * w // 9 + 70 * c + h * (c + 1)) % 256 for c in range(3)]).to(torch.uint8)[None]
    public = [0.428834, 0.227875, 0.388835, 0.296083, 0.027984, 0.200933, 0.320847, 0.217653]
    assert net(image)[0, ::16].tolist() == pytest.approx(public, abs=1e-5)


def test_positions_are_interpolated_by_the_published_factor(net, state) -> None:
    """Cubic convolution of a = -0.75 at the centres of 16 patches over 16.1 / 37, by hand."""
    weights, a = torch.zeros(16, 37), -0.75
    for i in range(16):
        centre = (i + 0.5) / (16.1 / 37) - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            d = abs(centre - j)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[i, min(max(j, 0), 36)] += near if d <= 1 else far
    patches = state["pos_embed"][0, 1:].view(37, 37, WIDTH)
    expected = torch.einsum("ih,jw,hwc->ijc", weights, weights, patches).reshape(256, WIDTH)
    found = net.net.positions(16)[0]
    torch.testing.assert_close(found[1:], expected, rtol=0, atol=1e-4)
    assert torch.equal(found[0], state["pos_embed"][0, 0])


@pytest.mark.parametrize("size", [(8, 8), (300, 100)])
def test_images_are_resized_as_pillow_does(net, size) -> None:
    given = []
    hook = net.net.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    image = some_images(1, size)
    net(image)
    hook.remove()
    planes = [Image.fromarray(plane.float().numpy()) for plane in image[0]]
    expected = np.stack([plane.resize((224, 224), Image.Resampling.BICUBIC) for plane in planes])
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose((given[0][0].numpy() * std + mean) * 255, expected, atol=0.02)


def test_grey_images_are_repeated(net) -> None:
    grey = some_images(2, channels=1)
    torch.testing.assert_close(net(grey), net(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        net(some_images(1, channels=2))


def test_making_it_draws_nothing_and_names_the_weights(weights, net) -> None:
    state = torch.get_rng_state()
    made = features_for("dinov2", weights=weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.fingerprint == net.fingerprint
    assert made.num_features == WIDTH
    assert not any(module.training for module in made.modules())
    assert f"a transformer of width {WIDTH}, depth {DEPTH}" in made.description
    assert "compare with no published FD-DINOv2" in made.description


def test_the_published_size_is_vit_l() -> None:
    with torch.device("meta"):
        network = VisionTransformer(1024, 24)
    assert sum(weight.numel() for weight in network.parameters()) == 304_368_640
    assert len(network.state_dict()) == 24 * 14 + 7


def test_absent_weights_are_named_with_their_address(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"download https://dl\.fbaipublicfiles\.com/dinov2/.*_vitl14_pretrain\.pth"):
        features_for("dinov2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": torch.zeros(10)}, "size mismatch for norm.weight"),
        ({"register_tokens": torch.zeros(1, 4, WIDTH)}, "Unexpected key"),
        ({"cls_token": torch.zeros(())}, "does not hold DINOv2's weights"),
        ({3: torch.zeros(2)}, "holds no weights by name"),
        ({"cls_token": torch.full((1, 1, WIDTH), torch.nan)}, "cls_token are not finite"),
    ],
)
def test_another_networks_file_gets_one_line(state, tmp_path, change, message) -> None:
    path = tmp_path / "other.pth"
    torch.save({**state, **change}, path)
    with pytest.raises(ValueError, match=message) as error:
        DINOv2(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_something_else_gets_one_line(tmp_path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold DINOv2's weights: Missing key") as error:
        DINOv2(tmp_path / "other.pth")
    assert "\n" not in str(error.value)
