"""Npz files of images, as guided-diffusion and `sample` write them, are a source for `data`."""

import numpy as np
import pytest
from PIL import Image

from ersde_lit.data.opening import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
LABELS = np.array([0, 2, 1, 1, 0])


def opened(tmp_path, size: int = 8, channels=3, unlabelled: bool = False, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return open_source(tmp_path / "x.npz", size, channels, unlabelled=unlabelled)


def test_pixels_and_classes_are_those_of_the_file(tmp_path) -> None:
    source = opened(tmp_path, arr_0=IMAGES, arr_1=LABELS)
    assert source.num_classes == 3
    assert source.labels.tolist() == LABELS.tolist()
    assert np.array_equal(source.read(np.array([3, 0])), IMAGES[[3, 0]].transpose(0, 3, 1, 2))


def test_images_are_averaged_to_the_size_and_made_grey(tmp_path) -> None:
    halves = opened(tmp_path, 4, arr_0=IMAGES).read(np.arange(5))
    means = IMAGES.reshape(5, 4, 2, 4, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    assert np.abs(halves - means).max() <= 1
    grey = opened(tmp_path, channels=1, arr_0=IMAGES).read(np.array([1]))
    assert np.array_equal(grey[0, 0], np.asarray(Image.fromarray(IMAGES[1]).convert("L")))


@pytest.mark.parametrize("images", [IMAGES[..., 0], IMAGES[..., :1], np.asfortranarray(IMAGES[..., :1])])
def test_grey_images_come_with_and_without_an_axis(tmp_path, images) -> None:
    source = opened(tmp_path, channels=1, arr_0=images)
    assert np.array_equal(source.read(np.arange(5))[:, 0], IMAGES[..., 0])


@pytest.mark.parametrize("arrays", [{}, {"arr_1": np.full(5, -1)}])
def test_without_classes_all_labels_are_minus_1(tmp_path, arrays) -> None:
    source = opened(tmp_path, arr_0=IMAGES, **arrays)
    assert source.num_classes == 0
    assert source.labels.tolist() == [-1] * 5


def test_classes_can_be_left_out(tmp_path) -> None:
    assert opened(tmp_path, unlabelled=True, arr_0=IMAGES, arr_1=LABELS).num_classes == 0


def test_other_pixels_are_another_source(tmp_path) -> None:
    one = opened(tmp_path, arr_0=IMAGES, arr_1=LABELS).identity
    assert opened(tmp_path, arr_0=IMAGES, arr_1=LABELS).identity == one
    assert opened(tmp_path, arr_0=255 - IMAGES, arr_1=LABELS).identity != one
    assert opened(tmp_path, arr_0=IMAGES, arr_1=LABELS[::-1]).identity != one


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 is float32"),
        ({"arr_0": IMAGES[..., :2]}, "not uint8"),
        ({"arr_0": IMAGES[:, :4]}, "8x4, too small for --size 8"),
        ({"arr_0": IMAGES, "arr_1": LABELS[:4]}, "not a class for each of 5 images"),
        ({"arr_0": IMAGES, "arr_1": LABELS / 2}, "not a class for each of 5 images"),
        ({"arr_0": IMAGES, "arr_1": LABELS - 1}, "--unlabelled"),
        ({"arr_0": IMAGES, "arr_1": np.uint64(2) ** 63 + LABELS.astype(np.uint64)}, "classes are 0 to 999999"),
        ({"arr_0": np.array([{}])}, "arr_0 cannot be used: it is of Python objects"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, arrays, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, **arrays)
