import io
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch_fidelity
from inception_weights import random_weights
from torch.utils.data import Dataset

from ersde_lit.metrics import METRICS, Inception, Scores, features_for
from ersde_lit.metrics.inception import FILE, SAME
from ersde_lit.metrics.reference import _measure


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    random_weights(path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return Inception(weights)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def some_images(n, seed, size=32, channels=3):
    """Smooth ones, which a network tells apart."""
    coarse = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255).byte()


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.mark.filterwarnings("ignore:.*covariance is singular", "ignore:This DataLoader will create")
@pytest.mark.slow
def test_all_metrics_are_torch_fidelitys_end_to_end(weights, inception, monkeypatch):
    fake, real = some_images(10, 0), some_images(10, 1) // 2 + 100
    monkeypatch.setattr("ersde_lit.metrics.scores.SPLITS", 1)  # they, and subsets, are drawn otherwise there
    scores = Scores(inception, _measure([real], inception, "cpu", 10, "real images", lambda count: None), METRICS)
    scores.update(fake)
    ours = scores.compute()
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(fake), input2=Images(real), cuda=False, cache=False, verbose=False, batch_size=10,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
        fid=True, isc=True, kid=True, prc=True, isc_splits=1, kid_subset_size=10, kid_subsets=1,
    )  # fmt: skip
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)  # theirs in float32
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert 1 < ours["fid"] < 100


def as_tensorflow_1(image, size=299):
    """Bilinear, corners not aligned, nothing averaged, in numpy: float64 [H, W] to [size, size]."""
    image = np.asarray(image, np.float64)
    for _ in range(2):  # rows, then columns
        n = len(image)
        at = np.arange(size) * (n / size)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        part = (at - low)[:, None]
        image = (image[low] * (1 - part) + image[high] * part).T
    return image


@pytest.mark.parametrize("size", [8, 64, 512])
def test_no_resize_is_ever_antialiased(inception, size):
    """What the first layer is given, of random pixels: antialiasing would change it by tens of grey levels."""
    given = []
    hook = inception.net.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inception(image)
    hook.remove()
    expected = np.stack([as_tensorflow_1(channel) for channel in image[0]])
    np.testing.assert_allclose(given[0][0].numpy() * 128 + 128, expected, atol=0.1)
    smooth = torch.nn.functional.interpolate(image.float(), size=(299, 299), mode="bilinear", antialias=size > 299)
    assert np.abs(smooth[0].numpy() - expected).max() > 10


def test_gives_features_and_logits_without_bias(inception):
    features, logits = inception.features_and_logits(some_images(2, 0))
    assert (features.shape, logits.shape) == ((2, 2048), (2, 1008))
    torch.testing.assert_close(logits, features @ inception.net.fc.weight.T)
    assert not features.requires_grad
    torch.testing.assert_close(inception(some_images(2, 0)), features)


def test_grey_images_are_repeated(inception):
    grey = some_images(2, 0, channels=1)
    torch.testing.assert_close(inception(grey), inception(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="images of 1 or 3 channels, not 2"):
        inception(some_images(2, 0, channels=2))


def test_fingerprint_is_of_the_weights_not_of_the_file(inception, weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    torch.save(dict(reversed(state.items())), tmp_path / "other.pth", _use_new_zipfile_serialization=False)
    assert Inception(tmp_path / "other.pth").fingerprint == inception.fingerprint
    state["fc.weight"][0, 0] += 1e-3
    torch.save(state, tmp_path / "changed.pth")
    assert Inception(tmp_path / "changed.pth").fingerprint != inception.fingerprint
    assert "not the published ones" in inception.description


@pytest.mark.parametrize("place", [f"cache/ersde_lit/{FILE}", f"hub/checkpoints/{FILE}", f"hub/checkpoints/{SAME}"])
def test_finds_the_file_in_the_caches(tmp_path, weights, inception, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).symlink_to(weights)
    state = torch.get_rng_state()
    assert features_for("inception").fingerprint == inception.fingerprint
    assert torch.equal(torch.get_rng_state(), state)


def test_downloads_to_the_cache_folder(tmp_path, weights, inception, monkeypatch):
    def download(url, path, hash_prefix, progress):
        assert url.endswith(FILE)
        assert hash_prefix == "6726825d"
        with open(path, "wb") as file:
            file.write(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert features_for("inception").fingerprint == inception.fingerprint
    assert [path.name for path in (tmp_path / "cache" / "ersde_lit").iterdir()] == [FILE]


def test_offline_says_what_to_put_where(tmp_path):
    with pytest.raises(ValueError) as error:
        features_for("inception")
    said = str(error.value)
    assert "cannot be downloaded (no route to host): put https://github.com/" in said
    assert f"{FILE} into {tmp_path / 'cache' / 'ersde_lit'}" in said
    assert "\n" not in said


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.write_text, ("",)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def of_small(**changes):
    return saved({"fc.weight": torch.zeros(2), **changes})


BAD = {
    "hostile pickle": (lambda mark: pickle.dumps({"fc.weight": Hostile(mark)}), "would run code of its own"),
    "hostile checkpoint": (lambda mark: saved({"fc.weight": Hostile(mark)}), "would run code of its own"),
    "text": (lambda _: b"<html>not found</html>", "{} "),
    "empty": (lambda _: b"", "{} holds no weights"),
    "cut short": (lambda _: of_small()[:-50], "{} holds no weights"),
    "a list": (lambda _: saved([torch.zeros(2)]), "{} holds no weights by name"),
    "numbers": (lambda _: saved({"fc.weight": 3}), "{} holds no weights by name"),
    "NaN": (lambda _: of_small(x=torch.tensor([torch.nan])), "{}: the weights x are not finite"),
    "other weights": (lambda _: of_small(), "{} does not hold Inception's weights: Missing key"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_line_and_none_of_it_is_run(tmp_path, case):
    make, message = BAD[case]
    path, mark = tmp_path / "weights.pth", tmp_path / "owned"
    path.write_bytes(make(mark))
    with pytest.raises(ValueError) as error:
        features_for("inception", weights=path)
    assert message.format(path) in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_a_layer_of_another_shape_says_which(tmp_path, weights):
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not hold Inception's weights: size mismatch for fc.weight"):
        Inception(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"absent.pth cannot be read: No such file"):
        Inception(tmp_path / "absent.pth")
