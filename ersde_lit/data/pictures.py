"""Source of image files: EDM's zips and folders, or folders of class folders."""

import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from einops import rearrange
from PIL import Image

from ersde_lit.data.classes import number_folders
from ersde_lit.data.decode import Exif
from ersde_lit.data.files import LABELS, Files, Zip, is_visible, notes_on
from ersde_lit.data.source import Resize, Source
from ersde_lit.errors import UserError

MOST_CLASSES = 1_000_000
FILTERS = {"area": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}


class Pictures(Source):
    """Image files, in the order of their names, as EDM and torchvision take them.

    With a `dataset.json`, images must have the size asked for, and it says their classes: {"labels": [[name, class],
    ...]} or {"labels": null}. Without, classes are the top folders (`number_folders`), and images are cropped to the
    square in their middle and made smaller. Images are read as `decode` says: transparent ones, animations and pixels
    of more than 8 bits are refused.

    Args:
        files: where they are.
        size, channels, resize, unlabelled, exif: as for `open_source`.
    """

    def __init__(
        self, files: Files, size: int, channels: Literal[1, 3], resize: Resize, unlabelled: bool, exif: Exif
    ) -> None:
        self.files, self.channels, self.resize, self.exif = files, channels, resize, exif
        self.image_shape = (channels, size, size)
        self.names = files.images
        self.notes = (*files.notes, *notes_on(exif))
        self.exact = LABELS in files.marks
        if unlabelled:
            self.labels = np.full(len(self.names), -1)
        elif self.exact:
            self.labels = _labels_of_json(files, self.names)
        else:
            self.class_names, self.labels = _labels_of_folders(files, self.names)
        self.num_classes = len(self.class_names) or int(self.labels.max()) + 1
        marks = [(name, files.marks[name]) for name in self.names]
        how = (self.image_shape, resize, self.exact, self.class_names, *([exif] if exif == "apply" else []))
        self.identity = hashlib.sha256(repr((marks, how)).encode() + self.labels.tobytes()).hexdigest()

    def read(self, indices: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor() as pool:  # decoding and resizing leave the interpreter's lock
            return np.stack([*pool.map(self._image, indices)])

    def _image(self, index: int) -> np.ndarray:
        name, size = self.names[index], self.image_shape[1]
        image = self.files.decode(name, self.channels, self.exif)
        if self.exact and image.size != (size, size):
            raise UserError(f"{self.files.where(name)} is {image.width}x{image.height}, not {size}x{size} as --size")
        if min(image.size) < size:
            raise UserError(f"{self.files.where(name)} is {image.width}x{image.height}: too small for --size {size}")
        return to_array(centre_square(image, size, self.resize))


def centre_square(image: Image.Image, size: int, resize: Resize = "area") -> Image.Image:
    """Centre crop to the largest square (half a pixel to the left or top where it is odd), resized to size x size."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), FILTERS[resize])


def to_array(image: Image.Image) -> np.ndarray:
    """Image as uint8 [C, H, W]."""
    return rearrange(np.atleast_3d(np.asarray(image)), "h w c -> c h w")


def _labels_of_json(files: Files, names: Sequence[str]) -> np.ndarray:
    where = files.where(LABELS)
    try:
        entries = json.loads(files.read(LABELS))["labels"]
        labels = {} if entries is None else dict(entries)
    except (ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile) as error:
        raise UserError(f'{where} is not {{"labels": [[name, class], ...]}} or {{"labels": null}}: {error}') from None
    if entries is None:
        return np.full(len(names), -1)
    if len(labels) < len(entries):
        twice, _ = Counter(name for name, _ in entries).most_common(1)[0]
        raise UserError(f"{where} has two labels for {twice}")
    if wrong := [item for item in labels.items() if type(item[1]) is not int or not 0 <= item[1] < MOST_CLASSES]:
        name, label = wrong[0]
        raise UserError(f"{where}: the label of {name} is {label!r}, not a class: 0 to {MOST_CLASSES - 1}")
    if missing := [name for name in names if name not in labels]:
        raise UserError(f"{where} has no label for {missing[0]} ({len(missing)} of {len(names)} images have none)")
    if len(labels) > len(names):
        other = min(set(labels) - set(names), key=str)
        raise UserError(f"{where} has {len(labels)} labels for {len(names)} images: {other} is not there")
    return np.array([labels[name] for name in names], np.int64)


def _labels_of_folders(files: Files, names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    without = "; add --unlabelled to take the images without classes"
    if isinstance(files, Zip) or re.fullmatch(r"\d{5}/img\d{8}\.\w+", names[0]):
        raise UserError(f"{files.path} is laid out as EDM's data sets are, but has no {LABELS}{without}")
    for name in names:
        depth = name.count("/")
        if depth == 0:
            raise UserError(f"{files.where(name)} is in no class folder, and there is no {LABELS}{without}")
        if depth > 1:
            top = files.path / name.partition("/")[0]
            raise UserError(f"{top} is no class folder: it holds folders; name the folder of class folders{without}")
    filled = {name.partition("/")[0] for name in names}
    folders = sorted(path.name for path in files.path.iterdir() if path.is_dir() and is_visible(path.name))
    if empty := [folder for folder in folders if folder not in filled]:
        left_out = "".join(f" ({note})" for note in files.notes)
        raise UserError(f"the class folder {files.path / empty[0]} holds no image that can be read{left_out}")
    number = number_folders(folders)
    class_names = {label: str(label) for label in range(max(number.values()) + 1)}  # of numbers that are left out too
    class_names |= {label: folder for folder, label in number.items()}
    return tuple(class_names.values()), np.array([number[name.partition("/")[0]] for name in names])
