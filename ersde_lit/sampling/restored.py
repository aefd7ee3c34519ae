"""Folders of images restored, of any sizes: what is restored, how, and how it is stored."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ersde_lit.data.image_files import encode_png, read_image, read_pixels
from ersde_lit.denoisers import Denoiser
from ersde_lit.errors import UserError
from ersde_lit.sampling.formats import About, Encoded, Folder
from ersde_lit.sampling.restoration import restore
from ersde_lit.sampling.tiles import Tiles
from ersde_lit.solvers import Sampler
from ersde_lit.solvers.loop import Callback
from ersde_lit.tf32 import tf32


@dataclass(frozen=True)
class Degraded:
    """Degraded images of a folder, numbered in the order of their names.

    Attributes:
        names: of the files, relative to the folder.
        bits: a channel, 8 or 16, of each.
        sizes: (height, width) of each.
        digest: SHA-256 of names and pixels.
    """

    folder: Path
    names: Sequence[str]
    bits: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    digest: str

    @classmethod
    def read(cls, folder: Path, names: Sequence[str], channels: int) -> "Degraded":
        """Reads all of them once.

        Raises:
            UserError: an image cannot be read, or has other channels; two would be restored to the same name, or one
                to that of a folder.
        """
        digest, bits, sizes, restored = hashlib.sha256(), list[int](), list[tuple[int, int]](), dict[str, str]()
        folders = {parent.as_posix(): name for name in names for parent in Path(name).parents}
        for name in names:
            other = restored.setdefault(restored_name(name), folders.get(restored_name(name), name))
            if other != name:
                raise UserError(f"{folder}: {other} and {name} would both become {restored_name(name)}; rename one")
            pixels = read_pixels(folder / name)
            if len(pixels) != channels:
                kinds = {1: "grey", 3: "in colour"}
                wanted = kinds.get(channels, f"of {channels} channels")
                raise UserError(f"{folder / name} is {kinds[len(pixels)]}, and the network is for images {wanted}")
            digest.update(f"{name} {pixels.itemsize} {[*pixels.shape]} ".encode() + pixels.numpy().tobytes())
            bits.append(8 * pixels.itemsize)
            sizes.append((pixels.shape[1], pixels.shape[2]))
        return cls(folder, names, bits, sizes, digest.hexdigest())


def restored_name(name: str) -> str:
    """Name of the file that an image is restored to."""
    return Path(name).with_suffix(".png").as_posix()


@dataclass(frozen=True, kw_only=True)
class RestoredFolder(Folder):
    """PNGs with the names and bits of the degraded images, whose numbers stand for seeds here."""

    of: Degraded

    def name(self, seed: int) -> str:
        return restored_name(self.of.names[seed])

    def encode(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> Encoded:
        """Encodes images, float32 [H, W, C] in [-1, 1] each, of these numbers."""
        tensors = (torch.from_numpy(rearrange(image, "h w c -> c h w")) for image in images)
        return {self.name(k): encode_png(image, self.of.bits[k]) for k, image in zip(seeds, tensors, strict=True)}

    def files(self, blocks: Iterable[Encoded], of: About) -> Iterable[tuple[str, bytes]]:
        return (file for file in super().files(blocks, of) if file[0] != "dataset.json")


@dataclass(frozen=True)
class Restoration:
    """Denoiser, sampler and settings that restore degraded images; in a run it stands in the place of a `Job`.

    Attributes:
        seed: of the noise of the first image, for samplers with noise; each image has the next.
        dtype, allow_tf32: as for `sampling.run.Job`.
    """

    denoiser: Denoiser
    sampler: Sampler
    nfe: int
    degraded: Degraded
    tiles: Tiles
    seed: int = 0
    dtype: torch.dtype = torch.float32
    allow_tf32: bool = False

    def labels_of(self, seeds: Sequence[int]) -> None:
        return None

    def count(self, seeds: Sequence[int]) -> int:
        return sum(self.tiles.count(*self.degraded.sizes[k]) for k in seeds)

    def images(self, seeds: Sequence[int], batch_size: int, callback: Callback | None = None) -> list[Tensor]:
        """Restores the images of these numbers, float32 [C, H, W] each on the CPU, `batch_size` tiles at a time."""
        images = [read_image(self.degraded.folder / self.degraded.names[k])[0] for k in seeds]
        sizes, counts, tiles = [image.shape[1:] for image in images], list[int](), list[Tensor]()
        for image in images:
            tiles += (of_image := self.tiles.split(image))
            counts.append(len(of_image))
        noise = [self.seed + k for k, count in zip(seeds, counts, strict=True) for _ in range(count)]
        by_shape = groupby(sorted(range(len(tiles)), key=lambda i: tiles[i].shape), lambda i: tiles[i].shape)
        for same in [[*group] for _, group in by_shape]:
            for part in (same[k : k + batch_size] for k in range(0, len(same), batch_size)):
                restored = self._restored([tiles[i] for i in part], [noise[i] for i in part], callback)
                for i, tile in zip(part, restored, strict=True):
                    tiles[i] = tile
        left = iter(tiles)
        return [self.tiles.join([*islice(left, n)], *size) for n, size in zip(counts, sizes, strict=True)]

    def _restored(self, tiles: Sequence[Tensor], seeds: Sequence[int], callback: Callback | None) -> Tensor:
        device = next(self.denoiser.parameters()).device
        batch = torch.stack([*tiles]).to(device)
        with tf32(self.allow_tf32), torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            return restore(self.denoiser, self.sampler, batch, self.nfe, seeds, callback).cpu()
