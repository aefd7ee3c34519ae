"""Fashion-MNIST, from a folder, from Debian's package or from the network."""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from pathlib import Path

import torch

from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.data.cifar10 import is_whole
from ersde_lit.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
COUNTS = {"train": 60_000, "test": 10_000}


class FashionMNIST(ImageDataModule):
    """Zalando's 60,000 + 10,000 real 28x28 grey pictures of clothes (Xiao et al., 2017, arXiv:1708.07747).

    "train" is the 60,000 (what FID compares with), "test" the 10,000, and "val" the first `val_size` of the test
    images in an order drawn by `seed`: enough for a steady validation loss at a fraction of the time.

    Flips are off by default: shoes all point to the left here, and a mirrored ankle boot lies three times its class's
    variance away from the real ones, so a model trained on both is far from the reference.

    Args:
        root: folder that holds `FashionMNIST/raw/`; filled from Debian's package dataset-fashion-mnist if that is
            installed, otherwise downloaded.
        batch_size: images a batch.
        val_size: images in "val", 1 to 10,000.
        seed: which ones.
        horizontal_flip: mirror half of the training images.

    Raises:
        ValueError: the files are neither there nor to be had, or are damaged; says what to do.
    """

    image_shape = (1, 28, 28)
    num_classes = 10
    class_names = (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 2000,
        seed: int = 0,
        horizontal_flip: bool = False,
    ) -> None:
        super().__init__(batch_size, horizontal_flip)
        if not 1 <= val_size <= COUNTS["test"]:
            raise UserError(f"val_size must be between 1 and {COUNTS['test']}, not {val_size}")
        self.root, self.val_size, self.seed = root, val_size, seed

    @property
    def raw(self) -> Path:
        return Path(self.root).expanduser() / "FashionMNIST" / "raw"

    def prepare_data(self) -> None:
        """Puts the files in place. Lightning calls it on one rank only; `load` makes good if nobody did."""
        if all((self.raw / name).is_file() for name in FILES):
            return
        from torchvision.datasets import FashionMNIST as Published

        md5s = dict(Published.resources)
        packed = [self.raw / f"{name}.gz" for name in FILES]
        damaged = [path for path in packed if path.is_file() and not is_whole(path, md5s[path.name])]
        try:
            if all((DEBIAN / f"{name}.gz").is_file() for name in FILES):
                for name in FILES:
                    _unpack(DEBIAN / f"{name}.gz", self.raw / name)
            else:
                Published(self.raw.parents[1], download=True)
        except (OSError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())
            here = f"; the {damaged[0]} that was there is damaged or cut short: its md5 is wrong" if damaged else ""
            raise UserError(
                f"Fashion-MNIST is not in {self.raw} and could not be put there ({reason}){here}: go online, or "
                f"install Debian's dataset-fashion-mnist, or put the unpacked {', '.join(FILES)} there"
            ) from error

    def load(self) -> dict[str, Split]:
        from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

        self.prepare_data()
        splits = {}
        for name, count in COUNTS.items():
            try:
                raw = TorchvisionFashionMNIST(self.raw.parents[1], train=name == "train")
                images, labels = raw.data.view(count, *self.image_shape), raw.targets.view(count).long()
            except (AssertionError, RuntimeError, ValueError, OSError) as error:
                raise UserError(f"the {name} files in {self.raw} are damaged: delete that folder and retry") from error
            splits[name] = Split(images, labels)
        order = torch.randperm(COUNTS["test"], generator=torch.Generator().manual_seed(self.seed))[: self.val_size]
        return {**splits, "val": Split(splits["test"].images[order], splits["test"].labels[order])}


def _unpack(packed: Path, target: Path) -> None:
    """Gunzips to a name of its own first, so that no other process ever sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        with gzip.open(packed) as source, partial.open("wb") as out:
            shutil.copyfileobj(source, out)
        partial.replace(target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RuntimeError(f"{packed} is damaged or cut short: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
