"""Small data sets in exactly the formats of the large ones."""

import hashlib
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torchvision
from PIL import Image


def pixels(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random images, uint8 [n, C, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    """A PNG of uint8 [C, H, W]."""
    return encoded(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def edm_name(index: int) -> str:
    return f"{index // 1000:05d}/img{index:08d}.png"


def edm_files(images: np.ndarray, labels: list[int] | None) -> dict[str, bytes]:
    """What EDM's data tool puts into a zip or folder."""
    names = [edm_name(k) for k in range(len(images))]
    pairs = labels and [list(pair) for pair in zip(names, labels, strict=True)]
    return {name: png(image) for name, image in zip(names, images, strict=True)} | {
        "dataset.json": json.dumps({"labels": pairs}).encode()
    }


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_batches(folder: Path, images: list[np.ndarray], labels: list[list[int]]) -> Path:
    """Downsampled ImageNet: a file for each list of images, labels 1 .. 1000."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (data, numbers) in enumerate(zip(images, labels, strict=True), 1):
        mean = data.reshape(len(data), -1).mean(0)
        np.savez(folder / f"train_data_batch_{number}.npz", data=data.reshape(len(data), -1), labels=numbers, mean=mean)
    return folder


def cifar10_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """The pickle of a batch as Python 2 and the numpy of 2009 wrote it: byte strings, 0 and 1 for booleans."""

    def string(text: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(text)) + text

    shape = b"".join(b"J" + struct.pack("<i", n) for n in (len(images), images[0].size)) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
    )
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    data = empty + b"(K\x01" + shape + dtype + b"K\x00tb\x89" + string(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + b"".join(string(b"%d.png" % k) for k in range(len(labels))) + b"e"
    entries = {b"batch_label": string(b"a batch"), b"labels": numbers, b"data": data, b"filenames": names}
    return b"\x80\x02}(" + b"".join(string(key) + value for key, value in entries.items()) + b"u."


def fake_cifar10(monkeypatch, train: int = 5, test: int = 12) -> dict[str, bytes]:
    """The files of a CIFAR-10 of 5 x `train` and `test` images, which torchvision's table of md5s then names."""
    published = torchvision.datasets.CIFAR10
    names = [name for name, _ in (*published.train_list, *published.test_list)]
    files = {}
    for k, name in enumerate(names):
        count = test if name == "test_batch" else train
        files[name] = cifar10_batch(pixels(count, 32, seed=k), [(k + j) % 10 for j in range(count)])
    listed = [[name, hashlib.md5(content).hexdigest()] for name, content in files.items()]
    monkeypatch.setattr(published, "train_list", listed[:5])
    monkeypatch.setattr(published, "test_list", listed[5:])
    return files


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path
