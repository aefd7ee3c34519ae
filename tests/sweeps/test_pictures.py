import numpy as np
import pytest
import torch
from measured_cells import cell, picture_of
from PIL import Image

from ersde_lit.sampling.grid import image_grid
from ersde_lit.sweeps.pictures import find_picture


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_first_images_are_shown(tmp_path, channels, mode):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, channels), np.uint8)
    record = cell("a/b", 10, "100-119")
    folder = tmp_path / "out"
    assert find_picture(folder, record) is None
    picture_of(folder, record, images, tmp_path / "images.npz")
    found = find_picture(folder, record)
    assert found.seeds == "100-115"
    shown = Image.open(found.path)
    assert shown.mode == mode
    expected = image_grid(torch.from_numpy(images[:16]).movedim(-1, 1), 4).movedim(0, -1)
    assert np.array_equal(np.asarray(shown).reshape(expected.shape), expected)


def test_of_large_images_fewer_are_shown(tmp_path):
    record = cell("a", 10, "100-119")
    picture_of(tmp_path, record, np.zeros((20, 256, 256, 1), np.uint8), tmp_path / "images.npz")
    assert find_picture(tmp_path, record).seeds == "100-107"


def test_a_picture_of_other_images_or_a_damaged_one_is_none(tmp_path):
    record = cell("a:b", 10, "100-119")
    picture_of(tmp_path, record, np.zeros((20, 8, 8, 1), np.uint8), tmp_path / "images.npz")
    assert find_picture(tmp_path, record)
    assert find_picture(tmp_path, cell("a_b", 10, "100-119")) is None  # the same file name
    other = {**record["description"], "checkpoints": {"ckpt_path": "0" * 64}}
    assert find_picture(tmp_path, {**record, "description": other}) is None
    find_picture(tmp_path, record).path.write_bytes(b"")
    assert find_picture(tmp_path, record) is None
