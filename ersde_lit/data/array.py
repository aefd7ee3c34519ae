"""ImageArray: memory-mapped data set that `python -m ersde_lit data` converted, as ImageNet-64."""

import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.errors import UserError
from ersde_lit.files import sha256

IMAGES, LABELS, INFO = "images.npy", "labels.npy", "info.json"


@dataclass(frozen=True)
class ArrayInfo:
    """Description of the two arrays, stored as `info.json`.

    `images.npy` is uint8 [images, C, H, W], of which the last `val_images` are held out; `labels.npy` is int64
    [images], 0 .. num_classes - 1, or -1 throughout where there are no classes.
    """

    images: int
    val_images: int
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    source: str  # digest of what was converted, and how
    sha256: dict[str, str]  # of the array files; empty while they are being written
    notes: tuple[str, ...] = field(default=(), compare=False)  # what else is to be said of the images
    command: str = field(default="", compare=False)  # that made it, where one did

    @property
    def image_bytes(self) -> int:
        return int(np.prod(self.image_shape))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, folder: Path) -> "ArrayInfo":
        """Info of a folder; raises UserError if it has none that can be read."""
        try:
            fields = json.loads((folder / INFO).read_text())
            fields |= {name: tuple(fields[name]) for name in ("image_shape", "class_names")}
            fields["notes"] = tuple(fields.get("notes", ()))
            info = cls(**fields)
            numbers = info.images, info.val_images, info.num_classes, *info.image_shape
            if not all(type(n) is int and n >= 0 for n in numbers) or info.val_images > info.images:
                raise ValueError(f"its numbers cannot be {', '.join(map(str, numbers))}")
            if not isinstance(info.sha256, dict):
                raise ValueError("its checksums are not by file")
            return info
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / INFO} cannot be read: {error}") from None


def is_converted(folder: Path) -> bool:
    """Whether a folder was converted, and is not one of image files that has an `info.json` of its own."""
    return (folder / INFO).is_file() and any((folder / name).is_file() for name in (IMAGES, LABELS))


def read_array(root: str | Path) -> tuple[ArrayInfo, Split]:
    """Read-only memory map of all images of a converted folder, the held-out ones last.

    Everything but the pixels is checked; `check_array` adds their checksums.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: `python -m ersde_lit data SOURCE --out {folder}` makes it")
    info = ArrayInfo.read(folder)
    images, labels = _map(folder / IMAGES), _map(folder / LABELS)
    for name, array, dtype, shape in (
        (IMAGES, images, np.uint8, (info.images, *info.image_shape)),
        (LABELS, labels, np.int64, (info.images,)),
    ):
        if array.dtype != dtype or array.shape != shape:
            raise UserError(
                f"{folder / name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape} as {INFO} says"
            )
    low, high = (0, info.num_classes - 1) if info.num_classes else (-1, -1)
    if len(labels) and not (labels.min() >= low and labels.max() <= high):
        raise UserError(f"{folder / LABELS} runs from {labels.min()} to {labels.max()}, not {low} to {high}")
    with warnings.catch_warnings():  # nobody writes to it; a copy-on-write map is refused where it exceeds the memory
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return info, Split(torch.from_numpy(images), torch.from_numpy(np.array(labels)))


def splits(info: ArrayInfo, whole: Split) -> dict[str, Split]:
    """Views of the training images ("train") and of the held-out ones ("val" and "test")."""
    count = info.images - info.val_images
    train, val = (Split(whole.images[part], whole.labels[part]) for part in (slice(count), slice(count, None)))
    return {"train": train, "val": val, "test": val}


def check_array(root: str | Path) -> ArrayInfo:
    """Info of a converted folder after `read_array`'s checks and those of the checksums."""
    info, _ = read_array(root)
    for name, expected in info.sha256.items():
        path = Path(root).expanduser() / name
        if sha256(path) != expected:
            raise UserError(f"{path} is damaged: its checksum is not that of {INFO}")
    if not info.sha256:
        raise UserError(f"{Path(root) / INFO} has no checksums: the conversion did not finish")
    return info


class ImageArray(ImageDataModule):
    """A folder that `python -m ersde_lit data SOURCE --out FOLDER` made: ImageNet-64, or images of your own.

    "train" is what FID compares with; "val" and "test" are the same held-out images. Nothing is copied into memory:
    batches are read from a map of the file. A CPU core reads 70,000 images/s of 64x64 in random batches of 256 once
    the system has cached them, 10,000 at first from a local disk, and always so where the memory is too small.

    Args:
        root: the folder.
        val_root: another such folder, whose images are "val" and "test"; all of `root` is "train" then. None: "val" is
            what was held out when `root` was made.
        batch_size: images a batch.
        horizontal_flip: mirror half of the training images.

    Raises:
        ValueError: a folder is absent or damaged, the two do not go together, or nothing is held out.
    """

    def __init__(
        self,
        root: str = "data/imagenet64",
        val_root: str | None = None,
        batch_size: int = 128,
        horizontal_flip: bool = False,
    ) -> None:
        super().__init__(batch_size, horizontal_flip)
        self.root, self.val_root = root, val_root
        info, _ = read_array(root)  # networks are built to its shape and classes before any image is read
        self.image_shape, self.num_classes, self.class_names = info.image_shape, info.num_classes, info.class_names

    @property
    def description(self) -> str:
        return f"{super().description} {self.root}"

    def load(self) -> dict[str, Split]:
        info, own = read_array(self.root)
        if self.val_root is None:
            if not info.val_images:
                raise UserError(f"{self.root} holds nothing out: pass val_root, or convert anew with --val_size")
            return splits(info, own)
        other, val = read_array(self.val_root)
        known = min(info.num_classes, 1) <= other.num_classes <= info.num_classes
        if other.image_shape != info.image_shape or not known:
            theirs, ours = (f"({one.image_shape}, {one.num_classes} classes)" for one in (other, info))
            raise UserError(f"{self.val_root} {theirs} does not go with {self.root} {ours}")
        for theirs, ours in zip(other.class_names, info.class_names, strict=False):
            if theirs != ours:
                raise UserError(f"{self.val_root} has other classes than {self.root}: {theirs} in the place of {ours}")
        if other.sha256 == info.sha256:
            raise UserError(f"{self.val_root} holds the very images of {self.root}: nothing would be held out")
        return {"train": own, "val": val, "test": val}


def _map(path: Path) -> Any:
    """Memory-mapped array; a header that claims more than the file holds is refused."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is missing, cut short or damaged: {error}") from None
