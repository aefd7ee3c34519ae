"""ImagePairs: degraded and clean images, of two folders of equal names or of two that `data --clean` made."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from ersde_lit.data.array import ArrayInfo, is_converted, read_array, splits
from ersde_lit.data.base import Batch, Batches, ImageDataModule, Split
from ersde_lit.data.convert import draw_held_out
from ersde_lit.data.image_files import in_words, pair_shapes, read_pixels, to_float
from ersde_lit.errors import UserError

CROPS = 2**32  # far more than there are places in an image

Images = Sequence[Tensor] | Tensor  # uint8 or uint16 [C, H, W] each
Shape = tuple[int, int, int]


class Sides(NamedTuple):
    """The images of a split, in one order."""

    clean: Images
    degraded: Images


class ImagePairs(ImageDataModule):
    """Pairs of a clean and a degraded image, to train the restoration of such images (`PairNoise`).

    Other noise laws are trained on the clean images alone; `RestorationCallback` restores the degraded ones then too.

    Batches are clean images, labels -1 and degraded images. Images of 8 or 16 bits a channel are decoded into memory;
    more than it takes, of 8 bits, are converted before and read from a map of the file then: `python -m ersde_lit data
    DEGRADED --clean CLEAN --out FOLDER` makes FOLDER/degraded and FOLDER/clean. "val" and "test" are the same pairs. As
    splits, and for FID, they are the middles of the clean images, in 8 bits.

    Args:
        degraded: folder of images, or a converted one.
        clean: another one, with as many images of the same names, sizes and channels.
        crop: side of the square that is cut out of both images of a pair, anywhere in training and in the middle in
            validation. None: all images have one size.
        val_size: pairs of image files to hold out; a twentieth, but no more than 5,000, if None.
        seed: which ones.
        batch_size: pairs a batch.
        horizontal_flip: mirror half of the training pairs.

    Raises:
        ValueError: images without a partner or of another size than it, too small or damaged ones, or nothing is held
            out.
    """

    num_classes = 0

    def __init__(
        self,
        degraded: str,
        clean: str,
        crop: int | None = None,
        val_size: int | None = None,
        seed: int = 0,
        batch_size: int = 128,
        horizontal_flip: bool = False,
    ) -> None:
        super().__init__(batch_size, horizontal_flip)
        if crop is not None and crop < 1:
            raise UserError(f"crop must be at least 1, not {crop}")
        self.crop = crop
        folders = Path(clean).expanduser(), Path(degraded).expanduser()
        converted = all(map(is_converted, folders))
        self._source = _Arrays(*folders, val_size) if converted else _Files(*folders, val_size, seed)
        self.image_shape = _common_shape(self._source.shapes, crop)
        self._sides: dict[str, Sides] = {}

    def load(self) -> dict[str, Split]:
        self._sides = self._source.read()
        return {name: Split.unlabelled(_bytes(sides.clean, self.image_shape)) for name, sides in self._sides.items()}

    def dataset(self, name: str) -> "Pairs":
        return Pairs(self.split(name), self._sides[name], self.horizontal_flip)

    @property
    def variants(self) -> int:
        return CROPS if self.crop else super().variants


class Pairs(Batches):
    """Serves whole batches: clean images, labels -1, degraded images; images are float32 [B, C, H, W] in [-1, 1].

    Index k is the middle of pair k; k + v len with v > 0 is a place in it that v tells, if `flip` mirrored at odd v.
    """

    def __init__(self, split: Split, sides: Sides, flip: bool) -> None:
        super().__init__(split)
        self.sides, self.flip = sides, flip

    def __getitems__(self, indices: list[int]) -> Batch:
        clean, degraded = (torch.stack([self._crop(images, index) for index in indices]) for images in self.sides)
        return clean, self.split.labels[torch.tensor(indices) % len(self)], degraded

    def _crop(self, images: Images, index: int) -> Tensor:
        variant, pair = divmod(index, len(self))
        image, (height, width) = images[pair], self.split.images.shape[2:]
        if not variant:
            return to_float(center_crop(image, [height, width]))
        rows, columns = image.shape[1] - height + 1, image.shape[2] - width + 1
        top, left = divmod(variant // 2 % (rows * columns), columns)
        cropped = to_float(image[:, top : top + height, left : left + width])
        return cropped.flip(-1) if self.flip and variant % 2 else cropped


class _Files:
    """Two folders of images of equal names."""

    def __init__(self, clean: Path, degraded: Path, val_size: int | None, seed: int) -> None:
        shapes = pair_shapes(degraded, clean)
        names = [*shapes]
        self.files = [[folder / name for name in names] for folder in (clean, degraded)]
        self.shapes = {clean / name: shape for name, shape in shapes.items()}
        self.held_out = draw_held_out(len(names), val_size, seed)
        if not len(self.held_out):
            raise UserError("val_size 0 holds no pair out: hold out one at least")

    def read(self) -> dict[str, Sides]:
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
            sides = [[*pool.map(read_pixels, files)] for files in self.files]
        trained = np.setdiff1d(np.arange(len(sides[0])), self.held_out)
        train, val = (Sides(*([side[k] for k in part] for side in sides)) for part in (trained, self.held_out))
        return {"train": train, "val": val, "test": val}


class _Arrays:
    """Two converted folders."""

    def __init__(self, clean: Path, degraded: Path, val_size: int | None) -> None:
        self.folders = clean, degraded
        ours, theirs = (ArrayInfo.read(folder) for folder in self.folders)
        facts = [(info.images, info.val_images, info.image_shape) for info in (ours, theirs)]
        # What follows the folder in a command says which images are held out, and so their order.
        ways = {info.command.rpartition(" --size=")[2] for info in (ours, theirs)}
        if facts[0] != facts[1] or ours.sha256 == theirs.sha256 or len(ways) > 1:
            raise UserError(f"{degraded} and {clean} are no pairs: make both by one `data DEGRADED --clean CLEAN`")
        if val_size is not None or not ours.val_images:
            raise UserError(f"{clean} holds {ours.val_images} images out: that is chosen by `data --val_size`")
        self.shapes = {clean: ours.image_shape}

    def read(self) -> dict[str, Sides]:
        clean, degraded = (splits(*read_array(folder)) for folder in self.folders)
        return {name: Sides(clean[name].images, degraded[name].images) for name in clean}


def _common_shape(shapes: Mapping[Path, Shape], crop: int | None) -> Shape:
    """Shape of all batches' images; raises UserError where an image has none such."""
    (first, shape), *_ = shapes.items()
    for path, other in shapes.items():
        if other != shape and (crop is None or other[0] != shape[0]):
            both = f"{path} is {in_words(other)}, {first} {in_words(shape)}"
            raise UserError(f"{both}: all must be grey or all in colour, and of one size unless `crop` is given")
        if crop is not None and min(other[1:]) < crop:
            raise UserError(f"{path} is {in_words(other)}, too small for a crop of {crop}")
    return shape if crop is None else (shape[0], crop, crop)


def _bytes(images: Images, shape: Shape) -> Tensor:
    """The middles of images as uint8 [N, C, H, W]; of an array a view."""
    if isinstance(images, Tensor):
        return center_crop(images, [*shape[1:]])
    return torch.stack([(to_float(center_crop(image, [*shape[1:]])) * 127.5 + 128).to(torch.uint8) for image in images])
