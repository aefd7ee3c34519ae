"""File formats of sampled images: a folder of PNGs, EDM's `.zip`, ADM's `.npz`, one picture.

A format encodes blocks of images, on any rank, and puts encoded blocks together, one at a time. The same images give
the same bytes.
"""

import io
import json
import math
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from ersde_lit.errors import UserError
from ersde_lit.sampling.description import Meta, parse_meta
from ersde_lit.untrusted.archives import open_stored

Encoded = Mapping[str, bytes]  # a block's images by name, as the format keeps them
BLOCK = "images.npy"
META = "meta"  # the description of the images: the file meta.json, the array or the text of this name
LARGEST_PICTURE = 2**26  # pixels; what is much larger, image viewers and PIL refuse


class About(NamedTuple):
    """Seeds of the images, their labels (None: of an unconditional model), and the description as JSON."""

    seeds: Sequence[int]
    labels: Sequence[int] | None
    meta: str


class Format(ABC):
    """A file format for images and their description."""

    channels: tuple[int, ...] | None = (1, 3)  # that it holds; None: any

    def check(self, count: int, image_shape: Sequence[int]) -> None:
        """Raises UserError where it cannot hold `count` images of this shape, (C, H, W)."""
        if self.channels is not None and image_shape[0] not in self.channels:
            raise UserError(f"a PNG holds 1 or 3 channels, not {image_shape[0]}; use --out NAME.npz")

    @abstractmethod
    def names(self, seeds: Sequence[int]) -> list[str]:
        """File names in an encoded block of these seeds."""

    @abstractmethod
    def encode(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> Encoded:
        """Encodes images, uint8 [H, W, C] each, of these seeds."""

    @abstractmethod
    def write(self, path: Path, blocks: Iterable[Encoded], of: About) -> None:
        """Puts the blocks together, which are in the order of the seeds."""

    @abstractmethod
    def read_meta(self, path: Path) -> str:
        """The description in the file as JSON; raises any error where there is none."""

    def meta(self, path: Path) -> Meta | None:
        """The description in the file; None where there is none that can be read."""
        try:
            return parse_meta(self.read_meta(path))
        except Exception:  # zipfile, numpy and PIL have many ways to say that a file is not theirs
            return None

    def holds(self, path: Path) -> bool:
        """Whether `path` is a set of samples in this format, which may be replaced."""
        return self.meta(path) is not None


class Pngs(Format):
    """One PNG an image, named by its seed; labels in dataset.json, as EDM reads them."""

    compression: int  # zlib's, 0 to 9

    @abstractmethod
    def name(self, seed: int) -> str: ...

    def names(self, seeds: Sequence[int]) -> list[str]:
        return [self.name(seed) for seed in seeds]

    def encode(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> Encoded:
        return {name: self._png(image) for name, image in zip(self.names(seeds), images, strict=True)}

    def _png(self, image: np.ndarray) -> bytes:
        file = io.BytesIO()
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(pixels).save(file, "png", compress_level=self.compression)
        return file.getvalue()

    def files(self, blocks: Iterable[Encoded], of: About) -> Iterable[tuple[str, bytes]]:
        """All files, by name."""
        for block in blocks:
            yield from block.items()
        pairs = None if of.labels is None else [*zip(self.names(of.seeds), of.labels, strict=True)]
        yield "dataset.json", json.dumps({"labels": pairs}).encode()
        yield f"{META}.json", of.meta.encode()


@dataclass(frozen=True)
class Folder(Pngs):
    """Files as EDM's generate.py names them, with `subdirs` a thousand to a folder."""

    subdirs: bool = False
    compression = 6

    def name(self, seed: int) -> str:
        return f"{seed - seed % 1000:06d}/{seed:06d}.png" if self.subdirs else f"{seed:06d}.png"

    def write(self, path: Path, blocks: Iterable[Encoded], of: About) -> None:
        path.mkdir()
        for name, data in self.files(blocks, of):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)

    def read_meta(self, path: Path) -> str:
        return (path / f"{META}.json").read_text()

    def holds(self, path: Path) -> bool:
        others = (e for e in path.rglob("*") if not (e.is_dir() or e.name.endswith((".png", ".json"))))
        return super().holds(path) and not any(others)


@dataclass(frozen=True)
class Zip(Pngs):
    """EDM's data-set format: a thousand images to a folder, uncompressed twice over, which is quickest to read."""

    compression = 0

    def name(self, seed: int) -> str:
        return f"{seed // 1000:05d}/img{seed:08d}.png"

    def write(self, path: Path, blocks: Iterable[Encoded], of: About) -> None:
        with zipfile.ZipFile(path, "x") as file:
            for name, data in self.files(blocks, of):
                file.writestr(zipfile.ZipInfo(name), data)  # ZipInfo: no date gets into the bytes

    def read_meta(self, path: Path) -> str:
        with open_stored(path) as file:
            return file.read(f"{META}.json").decode()


class Arrays(Format):
    """A block is one array, uint8 [n, H, W, C]."""

    def names(self, seeds: Sequence[int]) -> list[str]:
        return [BLOCK]

    def encode(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> Encoded:
        file = io.BytesIO()
        npy.write_array(file, np.stack(images), allow_pickle=False)
        return {BLOCK: file.getvalue()}

    @staticmethod
    def decode(block: Encoded) -> np.ndarray:
        return npy.read_array(io.BytesIO(block[BLOCK]), allow_pickle=False)


@dataclass(frozen=True)
class Npz(Arrays):
    """ADM's sample batches, which `numpy.load` reads: `arr_0` uint8 [N, H, W, C] and `arr_1` int64 [N] labels."""

    channels = None

    def write(self, path: Path, blocks: Iterable[Encoded], of: About) -> None:
        arrays = {} if of.labels is None else {"arr_1": np.array(of.labels, dtype=np.int64)}
        with zipfile.ZipFile(path, "x") as file:
            with file.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as pixels:
                for number, block in enumerate(blocks):
                    images = self.decode(block)
                    if number == 0:
                        header = {"descr": "|u1", "fortran_order": False, "shape": (len(of.seeds), *images.shape[1:])}
                        npy.write_array_header_1_0(pixels, header)
                    pixels.write(images.tobytes())
            for name, array in {**arrays, META: np.array(of.meta)}.items():
                with file.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    npy.write_array(member, array, allow_pickle=False)

    def read_meta(self, path: Path) -> str:
        with open_stored(path) as file:
            return str(npy.read_array(io.BytesIO(file.read(f"{META}.npy")), allow_pickle=False))


@dataclass(frozen=True)
class Picture(Arrays):
    """One PNG: a single image as it is, several as `image_grid` lays them, as near to a square as may be.

    Holds all images in memory.
    """

    columns: int | None = None

    def check(self, count: int, image_shape: Sequence[int]) -> None:
        super().check(count, image_shape)
        if count * math.prod(image_shape[1:]) > LARGEST_PICTURE:
            raise UserError(f"{count} images are too many for one picture; use a folder, .npz or .zip")

    def write(self, path: Path, blocks: Iterable[Encoded], of: About) -> None:
        import torch

        from ersde_lit.sampling.grid import image_grid, save_png

        images = torch.from_numpy(np.concatenate([self.decode(block) for block in blocks])).movedim(-1, 1)
        save_png(images[0] if len(images) == 1 else image_grid(images, self.columns), path, {META: of.meta})

    def read_meta(self, path: Path) -> str:
        with Image.open(path, formats=["png"]) as image:
            return str(image.info[META])


_FORMATS: dict[str, type[Format]] = {"": Folder, ".npz": Npz, ".zip": Zip, ".png": Picture}


def format_of(out: str | Path, **options: Any) -> Format:
    """The format that the ending of `out` says, none being a folder; options are its fields, where not None.

    Raises:
        ValueError: an unknown ending, or an option that this format does not have.
    """
    ending = Path(out).suffix.lower()
    if ending not in _FORMATS:
        raise UserError(f"--out {out}: unknown ending {ending}; use a folder (no ending), .npz, .zip or .png")
    found = _FORMATS[ending]
    given = {name: value for name, value in options.items() if value}
    for name in given:
        if not hasattr(found, name):
            raise UserError(f"--{name} is not for --out {out}: subdirs are of a folder, columns of a .png")
    return found(**given)


def read_meta(path: str | Path) -> Meta:
    """The description kept with sampled images in any of the formats: plain data.

    Raises:
        ValueError: nothing is there, or it cannot be read, or holds no such description.
    """
    if not Path(path).exists():
        raise UserError(f"there is nothing at {path}")
    if Path(path).suffix.lower() not in _FORMATS:
        raise UserError(f"{path} is no set of samples: those are a folder (no ending), .npz, .zip or .png")
    if (meta := format_of(path).meta(Path(path))) is None:
        raise UserError(f"{path} is damaged, or holds no images that this version of `sample` made")
    return meta
