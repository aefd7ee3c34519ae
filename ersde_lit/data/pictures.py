"""Data sets of image files: EDM's zips and folders, and folders with a folder of images for each class."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from ersde_lit.data.sources import Resize, Source

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
LABELS = "dataset.json"
FILTERS = {"area": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}


class Files(ABC):
    """Named files in a folder or a zip.

    Attributes:
        marks: of each file by its name, which is relative and has forward slashes: something that tells its content
            from another's (length or checksum). Hidden files are left out.
    """

    path: Path
    marks: dict[str, int]

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    def where(self, name: str) -> str:
        """The file in words."""
        return str(self.path / name)


class Folder(Files):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks = {}
        for folder, below, names in os.walk(path, onerror=_refuse, followlinks=True):
            below[:] = filter(_visible, below)
            inside = "" if folder == str(path) else f"{Path(folder).relative_to(path).as_posix()}/"
            for name in filter(_visible, names):
                self.marks[f"{inside}{name}"] = os.stat(f"{folder}/{name}").st_size

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class Zip(Files):
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile:
            raise ValueError(f"{path} is damaged, cut short or no zip file") from None
        entries = [entry for entry in self.zip.infolist() if not entry.is_dir()]
        twice = [name for name, count in Counter(entry.filename for entry in entries).items() if count > 1]
        if twice:
            raise ValueError(f"{self.where(twice[0])} is there twice")
        self.marks = {e.filename: e.CRC for e in entries if all(map(_visible, e.filename.split("/")))}

    def read(self, name: str) -> bytes:
        return self.zip.read(name)

    def where(self, name: str) -> str:
        return f"{name} in {self.path}"


class Pictures(Source):
    """Image files, in the order of their names, as EDM and torchvision take them.

    With a `dataset.json`, images must have the size asked for, and it says their classes: {"labels": [[name, class],
    ...]} or {"labels": null}. Without, classes are the top folders in the order of their names, and images are cropped
    to the square in their middle and made smaller. Transparent images and pixels of more than 8 bits are refused.

    Args:
        files: where they are.
        size, channels, resize, unlabelled: as for `open_source`.

    Raises:
        ValueError: no image, no classes where they are expected, or labels that do not match the images.
    """

    def __init__(self, files: Files, size: int, channels: int, resize: Resize, unlabelled: bool) -> None:
        self.files, self.resize = files, resize
        self.image_shape = (channels, size, size)
        self.names = sorted(name for name in files.marks if name.lower().endswith(ENDINGS))
        if not self.names:
            raise ValueError(f"{files.path} holds no image")
        self.exact = LABELS in files.marks
        if unlabelled:
            self.labels = np.full(len(self.names), -1)
        elif self.exact:
            self.labels = _labels_of_json(files, self.names)
        else:
            self.class_names, self.labels = _labels_of_folders(files, self.names)
        self.num_classes = len(self.class_names) or int(self.labels.max()) + 1
        marks = [(name, files.marks[name]) for name in self.names]
        how = (self.image_shape, resize, self.exact, self.class_names)
        self.identity = hashlib.sha256(repr((marks, how)).encode() + self.labels.tobytes()).hexdigest()

    def read(self, indices: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor() as pool:  # decoding and resizing leave the interpreter's lock
            return np.stack([*pool.map(self._image, indices)])

    def _image(self, index: int) -> np.ndarray:
        name, (channels, size, _) = self.names[index], self.image_shape
        try:
            image = decode(self.files.read(name), channels)
        except Exception as error:  # decoders raise anything
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ValueError(f"{self.files.where(name)} cannot be used: {reason}") from None
        if self.exact and image.size != (size, size):
            raise ValueError(f"{self.files.where(name)} is {image.width}x{image.height}, not {size}x{size} as --size")
        if min(image.size) < size:
            raise ValueError(f"{self.files.where(name)} is {image.width}x{image.height}: too small for --size {size}")
        return to_array(centre_square(image, size, self.resize))


def decode(data: bytes, channels: int) -> Image.Image:
    """The image in these bytes, as RGB or as grey.

    Raises:
        ValueError: it is not opaque, or has more than 8 bits a channel.
        Exception: whatever the decoder says of damaged data.
    """
    image: Image.Image
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Image.UnidentifiedImageError:
        raise ValueError("it is no image, or its beginning is damaged") from None
    if image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA"):
        raise ValueError(f"its pixels are of the kind {image.mode}: convert it to 8 bits a channel")
    if image.mode.endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise ValueError("it is transparent: put it on a background first")
    return image.convert("RGB" if channels == 3 else "L")


def centre_square(image: Image.Image, size: int, resize: Resize = "area") -> Image.Image:
    """The largest square in the middle (half a pixel to the left or top where it is odd), made size x size."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), FILTERS[resize])


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 [C, H, W]."""
    return rearrange(np.atleast_3d(np.asarray(image)), "h w c -> c h w")


def _labels_of_json(files: Files, names: Sequence[str]) -> np.ndarray:
    where = files.where(LABELS)
    try:
        entries = json.loads(files.read(LABELS))["labels"]
        labels = {} if entries is None else dict(entries)
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f'{where} is not {{"labels": [[name, class], ...]}} or {{"labels": null}}: {error}') from None
    if entries is None:
        return np.full(len(names), -1)
    if len(labels) < len(entries):
        twice, _ = Counter(name for name, _ in entries).most_common(1)[0]
        raise ValueError(f"{where} has two labels for {twice}")
    if wrong := [item for item in labels.items() if type(item[1]) is not int or not 0 <= item[1] < 2**31]:
        raise ValueError(f"{where}: the label of {wrong[0][0]} is {wrong[0][1]!r}, not a class 0, 1, ...")
    if missing := [name for name in names if name not in labels]:
        raise ValueError(f"{where} has no label for {missing[0]} ({len(missing)} of {len(names)} images have none)")
    if len(labels) > len(names):
        other = min(set(labels) - set(names), key=str)
        raise ValueError(f"{where} has {len(labels)} labels for {len(names)} images: {other} is not there")
    return np.array([labels[name] for name in names], np.int64)


def _labels_of_folders(files: Files, names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    without = "; add --unlabelled to take the images without classes"
    if isinstance(files, Zip) or re.fullmatch(r"\d{5}/img\d{8}\.\w+", names[0]):
        raise ValueError(f"{files.path} is laid out as EDM's data sets are, but has no {LABELS}{without}")
    for name in names:
        depth = name.count("/")
        if depth == 0:
            raise ValueError(f"{files.where(name)} is in no class folder, and there is no {LABELS}{without}")
        if depth > 1:
            top = files.path / name.partition("/")[0]
            raise ValueError(f"{top} is no class folder: it holds folders; name the folder of class folders{without}")
    filled = {name.partition("/")[0] for name in names}
    folders = sorted(path.name for path in files.path.iterdir() if path.is_dir() and _visible(path.name))
    if empty := [folder for folder in folders if folder not in filled]:
        raise ValueError(f"the class folder {files.path / empty[0]} holds no image")
    index = {folder: k for k, folder in enumerate(folders)}
    return tuple(folders), np.array([index[name.partition("/")[0]] for name in names])


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename} cannot be read: {error.strerror}")
