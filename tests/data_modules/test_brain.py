"""Brain slices: geometry, grey levels and splits, on small volumes in the NIfTI format."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from ersde_lit.data import BrainSlices
from ersde_lit.data.brain import HUMAN, MACAQUE, SIDE, WHITEST, read_volume


def ball(shape: tuple[int, int, int], grey: float = 100.0) -> np.ndarray:
    """An ellipsoid that fills a box, brighter to the right, to the front and to the top."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = x**2 + y**2 + z**2 < 1
    return np.where(inside, grey * (1 + 0.1 * x + 0.2 * y + 0.3 * z), 0).astype(np.float32)


def write(path: Path, volume: np.ndarray, axes: str = "RAS") -> None:
    """Stores a volume whose axes are right, anterior, superior, in the order and directions of `axes`."""
    target = nibabel.orientations.axcodes2ornt(axes)
    image = nibabel.Nifti1Image(volume, np.eye(4))
    nibabel.save(
        image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), target)), path
    )


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path / HUMAN, ball((40, 60, 50)))
    write(tmp_path / MACAQUE, ball((30, 40, 20), grey=3.0), axes="PIR")
    return tmp_path


def test_slices_are_centred_of_one_scale_and_one_brightness(root) -> None:
    data = BrainSlices(str(root))
    for name in ("train", "val", "macaque"):
        images = data.split(name).images
        assert images.dtype == torch.uint8
        assert images.shape[1:] == data.image_shape == (1, SIDE, SIDE)
        lit = (images > 0).flatten(0, 1).any(0)
        rows, columns = lit.any(1).nonzero(), lit.any(0).nonzero()
        assert abs(int(rows.min() + rows.max()) - (SIDE - 1)) <= 2  # centred
        assert abs(int(columns.min() + columns.max()) - (SIDE - 1)) <= 2
    longest = max(int((data.split(n).images > 0).any(3).sum(2).max()) for n in ("train", "macaque"))
    assert 116 <= longest <= 120
    assert abs(int(data.split("macaque").images.max()) - WHITEST) <= 2  # whatever its units


def test_slices_stand_upright_whatever_order_the_file_keeps_its_axes_in(tmp_path) -> None:
    write(tmp_path / "one.nii.gz", ball((20, 30, 24)))
    write(tmp_path / "other.nii.gz", ball((20, 30, 24)), axes="LIA")
    one, other = (read_volume(tmp_path / f"{name}.nii.gz") for name in ("one", "other"))
    assert torch.equal(one, other)
    across, front, top = (images.float() for images in BrainSlices.slices(one))
    for images in (across, front):  # superior on top
        assert images[..., : SIDE // 2, :].sum() > images[..., SIDE // 2 :, :].sum()
    assert top[..., : SIDE // 2, :].sum() > top[..., SIDE // 2 :, :].sum()  # anterior on top
    assert across[-1].max() > across[0].max()  # from left to right
    assert top[..., SIDE // 2 :].sum() > top[..., : SIDE // 2].sum()


def test_held_out_slices_are_far_from_those_trained_on(root) -> None:
    data = BrainSlices(str(root))
    train, val = (data.split(name).images for name in ("train", "val"))
    every = BrainSlices.slices(read_volume(root / HUMAN))
    assert len(val) == sum(round(0.6 * len(images)) - round(0.4 * len(images)) for images in every)
    assert len(train) == sum(map(len, every)) - len(val) - 3 * 10  # five on either side of three slabs
    assert not any((image == val).flatten(1).all(1).any() for image in train)


@pytest.mark.parametrize(
    ("name", "said"),
    [("absent", "apt-get install mricron-data"), ("damaged", "damaged or no NIfTI volume"), ("flat", "no volume")],
)
def test_bad_volumes_are_named(root, name: str, said: str) -> None:
    if name == "absent":
        (root / MACAQUE).unlink()
    elif name == "damaged":
        (root / MACAQUE).write_bytes((root / MACAQUE).read_bytes()[:200])
    else:
        write(root / MACAQUE, np.zeros((4, 4, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=said) as caught:
        BrainSlices(str(root)).split("train")
    assert MACAQUE in str(caught.value)
