"""Writers of sampled images: a folder of PNGs, a `.zip` like EDM's data sets, a `.npz` like ADM's batches.

All stream: none holds more than the images it is given at a time. The same images give the same bytes.
"""

import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from numpy.lib import format as npy

from ersde_lit.sampling.output import disk_errors, written_whole
from ersde_lit.sampling.seeds import format_seeds

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def open_writer(
    out: str | Path, seeds: Sequence[int], meta: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Iterator["Writer"]:
    """A writer for use in a `with`: `out` appears when that ends without error and all seeds were written.

    Args:
        out: its ending decides: none for a folder of `000000.png` by seed; `.zip` for uncompressed PNGs
            `00000/img00000000.png` by seed; `.npz` for `arr_0` uint8 [N, H, W, C] and `arr_1` int64 [N] labels.
            Folder and zip have labels in `dataset.json`, as EDM reads them: null if there are none.
        seeds: what will be written, in this order.
        meta: plain data kept as JSON with the images, and "seeds" with it, so that any of them can be made again:
            the file `meta.json`, in a `.npz` the string array `meta`.

    Raises:
        ValueError: as `check_out`; or some seeds were not written.
    """
    text = json.dumps({**(meta or {}), "seeds": format_seeds(seeds)}, indent=1)
    with written_whole(out, overwrite) as tmp:
        with disk_errors(out):
            store = _STORES[Path(out).suffix.lower()](tmp, len(seeds))
        try:
            writer = Writer(out, store, seeds)
            yield writer
            writer.finish(text)
        except BaseException:
            with suppress(OSError):
                store.close()
            raise


class Writer:
    """Takes images in the order of the seeds and sees to it that none is missing."""

    def __init__(self, out: str | Path, store: "Store", seeds: Sequence[int]) -> None:
        self.out, self.store, self.seeds = out, store, seeds
        self.labels: list[int] = []
        self.written = 0

    def write(self, images: "Tensor", labels: "Tensor | None", seeds: Sequence[int]) -> None:
        """Adds images, uint8 [n, C, H, W], with labels int64 [n] (None: unconditional) and their seeds, the next n.

        Raises:
            ValueError: other seeds than the next ones, labels for a part of the images only, channels that a PNG
                cannot hold (neither 1 nor 3), or a disk that is full or fails.
        """
        following = self.seeds[self.written : self.written + len(images)]
        if len(seeds) != len(images) or list(seeds) != list(following):
            raise ValueError(f"--out {self.out}: images come in the order of the seeds, {format_seeds(following)} now")
        if self.written and (labels is None) == bool(self.labels):
            raise ValueError(f"--out {self.out}: either all images have a label or none has")
        with disk_errors(self.out):
            self.store.add(rearrange(images.cpu().numpy(), "n c h w -> n h w c"), seeds)
        self.labels += [] if labels is None else labels.tolist()
        self.written += len(seeds)

    def finish(self, meta: str) -> None:
        """Completes the file; called by `open_writer` when its `with` ends well."""
        if self.written < len(self.seeds):
            raise ValueError(f"--out {self.out}: only {self.written} of {len(self.seeds)} images were written")
        with disk_errors(self.out):
            self.store.finish(self.seeds, self.labels, meta)
            self.store.close()


class Store(ABC):
    """One format, told the path to write to and the number of images to come."""

    @abstractmethod
    def __init__(self, path: Path, count: int) -> None: ...

    @abstractmethod
    def add(self, images: np.ndarray, seeds: Sequence[int]) -> None:
        """Adds images, uint8 [n, H, W, C]."""

    @abstractmethod
    def finish(self, seeds: Sequence[int], labels: list[int], meta: str) -> None:
        """Adds what is known in the end: all labels (none: unconditional) and the metadata."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of open files, whole or not."""


class Pngs(Store):
    """One PNG an image, named by its seed, beside `dataset.json` and `meta.json`."""

    compression: int  # zlib's, 0 to 9

    @abstractmethod
    def name(self, seed: int) -> str: ...

    @abstractmethod
    def put(self, name: str, data: bytes) -> None: ...

    def add(self, images: np.ndarray, seeds: Sequence[int]) -> None:
        for image, seed in zip(images, seeds, strict=True):
            self.put(self.name(seed), _png(image, self.compression))

    def finish(self, seeds: Sequence[int], labels: list[int], meta: str) -> None:
        pairs = [*zip(map(self.name, seeds), labels, strict=True)] if labels else None
        self.put("dataset.json", json.dumps({"labels": pairs}).encode())
        self.put("meta.json", meta.encode())


class Folder(Pngs):
    """Names as EDM's generate.py gives."""

    compression = 6

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        path.mkdir()

    def name(self, seed: int) -> str:
        return f"{seed:06d}.png"

    def put(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)

    def close(self) -> None:
        pass  # no file stays open


class Zip(Pngs):
    """EDM's data-set format: a thousand images to a folder, uncompressed twice over, which is quickest to read."""

    compression = 0

    def __init__(self, path: Path, count: int) -> None:
        self.zip = zipfile.ZipFile(path, "x")

    def name(self, seed: int) -> str:
        return f"{seed // 1000:05d}/img{seed:08d}.png"

    def put(self, name: str, data: bytes) -> None:
        self.zip.writestr(zipfile.ZipInfo(name), data)

    def close(self) -> None:
        self.zip.close()


class Npz(Store):
    """ADM's sample batches, which `numpy.load` reads: a zip of arrays, of which `arr_0` is written as it comes."""

    def __init__(self, path: Path, count: int) -> None:
        self.zip = zipfile.ZipFile(path, "x")
        self.count = count
        self.pixels: IO[bytes] | None = None

    def add(self, images: np.ndarray, seeds: Sequence[int]) -> None:
        if self.pixels is None:
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *images.shape[1:])}
            self.pixels = self.zip.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True)
            npy.write_array_header_1_0(self.pixels, header)
        self.pixels.write(images.tobytes())

    def finish(self, seeds: Sequence[int], labels: list[int], meta: str) -> None:
        if self.pixels is not None:
            self.pixels.close()
        arrays = {"arr_1": np.array(labels, dtype=np.int64)} if labels else {}
        for name, array in {**arrays, "meta": np.array(meta)}.items():
            with self.zip.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                npy.write_array(file, array, allow_pickle=False)

    def close(self) -> None:
        try:
            if self.pixels is not None:
                self.pixels.close()
        finally:
            self.zip.close()


_STORES: dict[str, type[Store]] = {"": Folder, ".zip": Zip, ".npz": Npz}


def _png(image: np.ndarray, compression: int) -> bytes:
    from PIL import Image

    if image.shape[-1] not in (1, 3):
        raise ValueError(f"a PNG holds 1 or 3 channels, not {image.shape[-1]}; use --out NAME.npz")
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png", compress_level=compression)
    return file.getvalue()
