"""Opening of a data set in any supported form, which is recognised from its path."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ersde_lit.data.decode import Exif
from ersde_lit.data.files import open_files
from ersde_lit.data.imagenet_batches import ImageNetBatches
from ersde_lit.data.npz import array_names
from ersde_lit.data.npz_images import IMAGES, NpzImages
from ersde_lit.data.pictures import Pictures
from ersde_lit.data.source import Resize, Source
from ersde_lit.errors import UserError

FORMS = (
    "EDM's zip or folder with a dataset.json, downsampled ImageNet's train_data_batch_*.npz (the folder or one file), "
    "an .npz with arr_0, or a folder that holds a folder of images for each class"
)


def open_source(
    path: str | Path,
    size: int,
    channels: Literal[1, 3] = 3,
    resize: Resize = "area",
    unlabelled: bool = False,
    exif: Exif = "apply",
) -> Source:
    """The data set at `path`, as images of size x size.

    Args:
        path: EDM's zip or folder (PNGs and `dataset.json`), the folder of downsampled ImageNet's
            `train_data_batch_*.npz` or one such file, an .npz with arr_0 uint8 [N, H, W, C] (and classes arr_1), as
            `sample` writes it, or a folder of class folders, as ImageNet comes.
        size: that of EDM's files and downsampled ImageNet's. Other images are cropped to the square in their middle and
            made smaller to it, never larger.
        channels: 3 for RGB, 1 for grey; what is stored otherwise is converted. Downsampled ImageNet is always RGB.
        resize: "area" averages the pixels whose middle is under each new one, as downsampled ImageNet was made
            (Chrabaszcz et al., 2017, arXiv:1707.08819, "box"); "lanczos" gives what EDM's data tool makes of ImageNet,
            to the byte (images with an EXIF orientation: with exif "ignore").
        unlabelled: leave classes out; then any folder or zip of images will do, cropped unless it has a `dataset.json`.
        exif: "apply" turns images as their EXIF orientation says, before anything else is done or checked; "ignore"
            takes pixels as they are stored, as EDM's data tool and torchvision do.

    Raises:
        ValueError: nothing of the kind is there, or it is damaged or contradicts itself; names the file.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".npz" and path.is_file() and IMAGES in array_names(path):
        return NpzImages(path, size, channels, resize, unlabelled)
    if npz := _npz_files(path):
        if channels != 3:
            raise UserError(f"{npz[0]} holds RGB images: leave channels at 3")
        return ImageNetBatches(npz, size, unlabelled)
    if (files := open_files(path)) is None:
        raise UserError(f"{path} is none of the forms that are read: {FORMS}")
    return Pictures(files, size, channels, resize, unlabelled, exif)


def _npz_files(path: Path) -> Sequence[Path]:
    """Downsampled ImageNet's files, in the order of their numbers; none if the path is something else."""
    if not path.is_dir():
        return [path] if path.is_file() and path.suffix.lower() == ".npz" else []
    found = {
        int(match[1]): file
        for file in sorted(path.iterdir())  # an npz comes after the pickle of the same number, and so instead of it
        if (match := re.fullmatch(r"train_data_batch_(\d+)(\.npz)?", file.name))
    }
    if pickles := [file for _, file in sorted(found.items()) if not file.suffix]:
        raise UserError(f"{pickles[0]} is a pickle, which can run code when it is read: take the npz files instead")
    if gaps := set(range(1, max(found, default=0))) - set(found):
        raise UserError(f"{path / f'train_data_batch_{min(gaps)}.npz'} is missing: there are later ones")
    return [file for _, file in sorted(found.items())]
