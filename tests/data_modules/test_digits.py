import pytest
import torch
from sklearn.datasets import load_digits

from ersde_lit.data import Digits


def flat(images):
    return {tuple(row.tolist()) for row in images.flatten(1)}


def test_is_scikit_learns_digits_as_bytes_none_lost_none_twice():
    data = Digits()
    train, val = data.split("train"), data.split("val")
    assert len(train.images) == 1617
    assert len(val.images) == 180
    for split in (train, val):
        assert split.images.dtype == torch.uint8
        assert tuple(split.images.shape[1:]) == data.image_shape
    values, targets = load_digits(return_X_y=True)
    expected = {(*(round(v * 255 / 16) for v in row), t) for row, t in zip(values.tolist(), targets, strict=True)}
    images, labels = torch.cat([train.images, val.images]), torch.cat([train.labels, val.labels])
    assert {(*row, t) for row, t in zip(images.flatten(1).tolist(), labels.tolist(), strict=True)} == expected


def test_no_held_out_image_is_trained_on_and_every_class_is_held_out():
    data = Digits()
    assert not flat(data.split("train").images) & flat(data.split("val").images)
    assert data.split("val").labels.bincount().tolist() == [18] * 10
    assert data.split("test") is data.split("val")


def test_the_split_follows_the_seed():
    images = [Digits(seed=seed).split("val").images for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_digits_are_never_mirrored():
    assert Digits().horizontal_flip is False


@pytest.mark.parametrize("size", [9, 1001])
def test_refuses_a_senseless_split(size):
    with pytest.raises(ValueError, match=f"val_size must be between 10 and 1000, not {size}"):
        Digits(val_size=size)
