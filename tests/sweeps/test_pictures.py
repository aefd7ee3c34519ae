import numpy as np
import pytest
import torch
from measured_cells import cell, keep_picture
from PIL import Image

from ersde_lit.sampling.grid import image_grid
from ersde_lit.sweeps.pictures import Pictures


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_first_images_are_shown(tmp_path, channels, mode):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, channels), np.uint8)
    record = cell("a/b", 10, "100-119")
    pictures = Pictures(tmp_path / "out")
    assert pictures.find(record) is None
    keep_picture(pictures, record, images, tmp_path / "images.npz")
    found = pictures.find(record)
    assert found.seeds == "100-115"
    shown = Image.open(found.path)
    assert shown.mode == mode
    expected = image_grid(torch.from_numpy(images[:16]).movedim(-1, 1), 4).movedim(0, -1)
    assert np.array_equal(np.asarray(shown).reshape(expected.shape), expected)


def test_of_large_images_fewer_are_shown(tmp_path):
    record = cell("a", 10, "100-119")
    keep_picture(Pictures(tmp_path), record, np.zeros((20, 256, 256, 1), np.uint8), tmp_path / "images.npz")
    assert Pictures(tmp_path).find(record).seeds == "100-107"


def test_a_picture_of_other_images_or_a_damaged_one_is_none(tmp_path):
    record, pictures = cell("a:b", 10, "100-119"), Pictures(tmp_path)
    keep_picture(pictures, record, np.zeros((20, 8, 8, 1), np.uint8), tmp_path / "images.npz")
    assert pictures.find(record)
    assert pictures.find(cell("a_b", 10, "100-119")) is None  # the same file name
    other = {**record["description"], "checkpoints": {"ckpt_path": "0" * 64}}
    assert pictures.find({**record, "description": other}) is None
    pictures.find(record).path.write_bytes(b"")
    assert pictures.find(record) is None
