"""CIFAR-10, from a folder or from the network."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.errors import UserError


class CIFAR10(ImageDataModule):
    """50,000 + 10,000 real 32x32 colour images of 10 classes (Krizhevsky, 2009).

    "train" is the 50,000 (what FID compares with), "test" the 10,000, and "val" the first `val_size` of the test
    images in an order drawn by `seed`: enough for a steady validation loss at a fraction of the time.

    Args:
        root: folder that holds `cifar-10-batches-py/`, as torchvision lays it out; filled from the archive
            `cifar-10-python.tar.gz` if that is in `root`, otherwise downloaded.
        batch_size: images a batch.
        val_size: images in "val", 1 to 10,000.
        seed: which ones.
        horizontal_flip: mirror half of the training images.

    Raises:
        ValueError: the files are neither there nor to be had, or are not the published ones; says what to do.
    """

    image_shape = (3, 32, 32)
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 2000,
        seed: int = 0,
        horizontal_flip: bool = False,
    ) -> None:
        super().__init__(batch_size, horizontal_flip)
        if not 1 <= val_size <= 10_000:
            raise UserError(f"val_size must be between 1 and 10000, not {val_size}")
        self.root, self.val_size, self.seed = root, val_size, seed

    def prepare_data(self) -> None:
        """Puts the files in place. Lightning calls it on one rank only; `load` makes good if nobody did."""
        from torchvision.datasets import CIFAR10 as Published
        from torchvision.datasets.utils import download_and_extract_archive

        root, files = Path(self.root).expanduser(), [*Published.train_list, *Published.test_list]
        folder = root / Published.base_folder
        there = [name for name, _ in files if (folder / name).is_file()]
        if len(there) == len(files):
            return
        for name, md5 in files:
            if name in there:
                _read(folder / name, md5)  # nothing that is not the archive's gets overwritten by it
        archive = root / Published.filename
        damaged = archive.is_file() and not is_whole(archive, Published.tgz_md5)
        try:
            download_and_extract_archive(Published.url, root, filename=Published.filename, md5=Published.tgz_md5)
        except (OSError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())
            here = f"; the {archive} that was there is damaged or cut short: its md5 is wrong" if damaged else ""
            raise UserError(
                f"CIFAR-10 is not in {folder} and could not be put there ({reason}){here}: go online, or put "
                f"{Published.filename} (md5 {Published.tgz_md5}) into {root}"
            ) from error

    def load(self) -> dict[str, Split]:
        from torchvision.datasets import CIFAR10 as Published

        self.prepare_data()
        folder = Path(self.root).expanduser() / Published.base_folder
        train, test = (
            _joined([_read(folder / name, md5) for name, md5 in files])
            for files in (Published.train_list, Published.test_list)
        )
        order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(self.seed))[: self.val_size]
        return {"train": train, "val": Split(test.images[order], test.labels[order]), "test": test}


def is_whole(path: Path, md5: str) -> bool:
    """Whether a published file is what was published."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5


def _read(path: Path, md5: str) -> dict[str, Any]:
    """A published batch: `data` uint8 [n, 3 * 32 * 32], plane by plane, and `labels`.

    It is a pickle, which could run anything. So the very bytes that are unpickled are those whose md5 was compared
    (torchvision reads the file twice): nobody knows how to make other bytes with the md5 of given ones.
    """
    data = path.read_bytes()
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path} is cut short or not the published file (md5 {md5}): delete its folder and retry")
    return pickle.loads(data, encoding="latin1")


def _joined(batches: list[dict[str, Any]]) -> Split:
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, *CIFAR10.image_shape)
    labels = np.concatenate([batch["labels"] for batch in batches])
    return Split(torch.from_numpy(images), torch.from_numpy(labels).long())
