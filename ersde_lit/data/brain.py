"""Slices of two real T1 brain volumes, a human's and a macaque's, from Debian's package mricron-data."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.errors import UserError, needs_extra

ROOT = "/usr/share/mricron/templates"  # of Debian's package mricron-data
HUMAN, MACAQUE = "ch2better.nii.gz", "inia19-t1-brain.nii.gz"
SIDE, LONGEST = 128, 120  # of an image, and of the brain in it, in pixels
WHITEST = 180  # grey level of the 99.9th percentile: a field of +40 % stays below 255
LEAST = 0.1  # share of a slice that is brain


class BrainSlices(ImageDataModule):
    """T1 slices in all three directions, 1x128x128, without skull, on black; no classes.

    "train" and "val" (also "test") are of one human brain (Holmes et al. 1998, at 0.5 mm): in each direction one slab
    of a fifth, four tenths of the way through, is held out, and five slices on either side of it are left out. (Slices
    of the other directions still cross it.) "macaque" is another species (Rohlfing et al. 2012, INIA19), never trained
    on. Each volume is scaled to 120 pixels along its longest side, and to the grey level 180 at its 99.9th percentile.

    Args:
        root: folder of the volumes.
        batch_size: images a batch.
        horizontal_flip: mirror half of the training images.

    Raises:
        UserError: a volume is absent or damaged; or nibabel is not installed (the extra `mri`).
    """

    image_shape = (1, SIDE, SIDE)
    num_classes = 0

    def __init__(self, root: str = ROOT, batch_size: int = 32, horizontal_flip: bool = False) -> None:
        super().__init__(batch_size, horizontal_flip)
        self.root = root

    def load(self) -> dict[str, Split]:
        human, macaque = (self.slices(read_volume(Path(self.root) / name)) for name in (HUMAN, MACAQUE))
        train, val = [], []
        for images in human:
            low, high = (round(share * len(images)) for share in (0.4, 0.6))
            val.append(images[low:high])
            train += [images[: low - 5], images[high + 5 :]]
        parts = {"train": train, "val": val, "test": val, "macaque": macaque}
        return {name: Split.unlabelled(torch.cat(images)) for name, images in parts.items()}

    @staticmethod
    def slices(volume: Tensor) -> list[Tensor]:
        """Images uint8 [N, 1, 128, 128] of a volume's slices along each of its axes, brain enough in each."""
        brain = volume[tuple(slice(int(where.min()), int(where.max()) + 1) for where in volume.nonzero().T)]
        scale = LONGEST / max(brain.shape)
        found = []
        for axis in range(3):
            images = brain.movedim(axis, 0).transpose(1, 2).flip(1)[:, None]  # superior, or anterior, on top
            images = images[(images > 0).float().mean((1, 2, 3)) > LEAST]
            size = [round(side * scale) for side in images.shape[2:]]
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
            height, width = (SIDE - side for side in size)
            padding = (width // 2, width - width // 2, height // 2, height - height // 2)
            found.append(F.pad(images, padding).round().to(torch.uint8))
        return found


def read_volume(path: Path) -> Tensor:
    """A NIfTI volume, float32 [X, Y, Z], its axes right, anterior, superior; in grey levels, 0 to 255."""
    with needs_extra("mri", "BrainSlices"):
        import nibabel

    if not path.is_file():
        raise UserError(f"there is no {path}: apt-get install mricron-data, or pass root=FOLDER")
    try:
        stored = nibabel.as_closest_canonical(nibabel.load(path)).dataobj
        volume = np.ascontiguousarray(stored, dtype=np.float32)
    except Exception as error:  # gzip and nibabel raise anything
        raise UserError(f"{path} is damaged or no NIfTI volume: {error}") from None
    if volume.ndim != 3 or not np.isfinite(volume).all() or volume.max() <= 0:
        raise UserError(f"{path} is no volume of finite numbers above 0, but of shape {volume.shape}")
    white = float(np.percentile(volume, 99.9))
    return torch.from_numpy(volume).mul(WHITEST / white).clamp(0, 255)
