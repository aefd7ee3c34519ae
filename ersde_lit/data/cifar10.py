"""CIFAR-10, from a folder or downloaded."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10 as Published
from torchvision.datasets.utils import download_and_extract_archive

from ersde_lit.data.base import Split
from ersde_lit.data.published import PublishedImages, fetching
from ersde_lit.errors import UserError


class CIFAR10(PublishedImages):
    """50,000 + 10,000 real 32x32 colour images of 10 classes (Krizhevsky, 2009).

    `root` holds `cifar-10-batches-py/`, as torchvision lays it out; it is filled from the archive
    `cifar-10-python.tar.gz` if that is in `root`, otherwise by a download.
    """

    image_shape = (3, 32, 32)
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def prepare_data(self) -> None:
        root, files = Path(self.root).expanduser(), [*Published.train_list, *Published.test_list]
        folder = root / Published.base_folder
        present = [(name, md5) for name, md5 in files if (folder / name).is_file()]
        if len(present) == len(files):
            return
        for name, md5 in present:
            _read(folder / name, md5)  # the archive must overwrite nothing but its own files
        md5 = Published.tgz_md5
        remedy = f"go online, or put {Published.filename} (md5 {md5}) into {root}"
        with fetching("CIFAR-10", folder, {root / Published.filename: md5}, remedy):
            download_and_extract_archive(Published.url, root, filename=Published.filename, md5=md5)

    def load_published(self) -> tuple[Split, Split]:
        folder = Path(self.root).expanduser() / Published.base_folder
        splits = []
        for files in (Published.train_list, Published.test_list):
            batches = [_read(folder / name, md5) for name, md5 in files]
            images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, *self.image_shape)
            labels = np.concatenate([batch["labels"] for batch in batches])
            splits.append(Split(torch.from_numpy(images), torch.from_numpy(labels).long()))
        return splits[0], splits[1]


def _read(path: Path, md5: str) -> dict[str, Any]:
    """A published batch: `data` uint8 [n, 3 * 32 * 32], plane by plane, and `labels`.

    It is a pickle, which could run anything. So the very bytes that are unpickled are those whose md5 was compared
    (torchvision reads the file twice): nobody knows how to make other bytes with the md5 of given ones.
    """
    data = path.read_bytes()
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path} is cut short or not the published file (md5 {md5}): delete its folder and retry")
    return pickle.loads(data, encoding="latin1")
