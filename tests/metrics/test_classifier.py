import sys

import pytest
import torch

from ersde_lit.data import Digits, ImageDataModule, Split
from ersde_lit.metrics import Classifier, Recipe, classifier


class Stripes(ImageDataModule):
    """Two classes that anything tells apart."""

    image_shape, num_classes = (1, 8, 8), 2

    def __init__(self, shift=0):
        super().__init__()
        self.shift = shift

    def load(self):
        labels = torch.arange(256) % 2
        images = (labels.view(-1, 1, 1, 1) * 200 + self.shift).expand(-1, 1, 8, 8).to(torch.uint8)
        return dict.fromkeys(("train", "val", "test"), Split(images, labels))


@pytest.fixture
def count_trainings(monkeypatch):
    module = sys.modules["ersde_lit.metrics.classifier"]  # the package's attribute of this name is the function
    done, train = [], module._train
    monkeypatch.setattr(module, "_train", lambda *args: (done.append(1), train(*args)))
    return done


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory):
    return classifier(Digits(), tmp_path_factory.mktemp("cache"))


def test_reads_digits_it_has_not_seen(of_digits):
    held_out = Digits().split("val")
    right = (of_digits.logits(held_out.images).argmax(1) == held_out.labels).double().mean().item()
    assert right > 0.95
    assert of_digits.accuracy.item() == pytest.approx(right, abs=1e-6)
    assert f"{right:.1%}" in of_digits.description


def test_features_of_an_image_do_not_depend_on_its_company(of_digits):
    images = Digits().split("val").images
    together, alone = of_digits(images), torch.cat([of_digits(image[None]) for image in images])
    assert together.shape == (180, of_digits.num_features)
    assert not together.requires_grad
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_trains_once_for_a_data_set_and_recipe(tmp_path, count_trainings):
    first = classifier(Stripes(), tmp_path)
    second = classifier(Stripes(), tmp_path)
    assert len(count_trainings) == 1
    assert not second.training
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    classifier(Stripes(shift=1), tmp_path)
    classifier(Stripes(), tmp_path, Recipe(passes=2))
    assert len(count_trainings) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_training_repeats_and_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = classifier(Stripes(), tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = classifier(Stripes(), tmp_path / "b")
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_trains_within_inference_mode(tmp_path):
    with torch.inference_mode():
        assert classifier(Stripes(), tmp_path).accuracy == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_cache_file_is_replaced(tmp_path, count_trainings, content):
    classifier(Stripes(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    classifier(Stripes(), tmp_path)
    classifier(Stripes(), tmp_path)
    assert len(count_trainings) == 2


def test_does_without_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert classifier(Stripes(), tmp_path / "file").accuracy == 1


def test_default_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    classifier(Stripes())
    assert [p.parent.name for p in tmp_path.rglob("*.pt")] == ["ersde_lit"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 5, 9)])
def test_takes_images_of_any_size(shape):
    net = Classifier(shape, 7, Recipe()).eval()
    images = torch.randint(256, (4, *shape), dtype=torch.uint8)
    assert net(images).shape == (4, 64)
    assert net.logits(images).shape == (4, 7)


def test_refuses_images_of_another_shape(of_digits):
    with pytest.raises(ValueError, match=r"reads images \(1, 8, 8\), not \(3, 8, 8\)"):
        of_digits(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_refuses_data_without_labels(tmp_path):
    data = Stripes()
    data.num_classes = 0
    with pytest.raises(ValueError, match="need a labelled data set; Stripes has no classes"):
        classifier(data, tmp_path)
