import numpy as np
import pytest
import torch
from PIL import Image

from ersde_lit.sampling.grid import image_grid, save_png


@pytest.mark.parametrize("channels", [1, 3])
def test_images_lie_row_by_row_enlarged_whole(tmp_path, channels):
    images = torch.arange(6, dtype=torch.uint8).mul(40).view(6, 1, 1, 1).expand(6, channels, 8, 8)
    picture = image_grid(images, columns=3)
    assert picture.shape == (channels, 2 * 34, 3 * 34)
    for k in range(6):
        row, column = divmod(k, 3)
        tile = picture[:, row * 34 + 1 : row * 34 + 33, column * 34 + 1 : column * 34 + 33]
        assert (tile == 40 * k).all()
    save_png(picture, tmp_path / "new" / "a.png")
    back = np.asarray(Image.open(tmp_path / "new" / "a.png"))
    assert (back == (picture[0] if channels == 1 else picture.movedim(0, -1)).numpy()).all()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_large_images_keep_their_size():
    assert image_grid(torch.zeros(4, 3, 64, 48, dtype=torch.uint8), columns=2).shape == (3, 132, 100)


def test_a_last_row_is_filled_up():
    picture = image_grid(torch.full((5, 1, 32, 32), 9, dtype=torch.uint8), columns=3)
    assert picture.shape == (1, 68, 102)
    assert (picture[0, 35:67, 35:67] == 9).all()
    assert (picture[0, 35:67, 69:101] == 0).all()
