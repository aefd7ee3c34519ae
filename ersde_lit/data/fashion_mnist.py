"""Fashion-MNIST, from a folder, from Debian's package or downloaded."""

import gzip
import shutil
import zlib
from pathlib import Path

from torchvision.datasets import FashionMNIST as Published

from ersde_lit.data.base import Split
from ersde_lit.data.published import PublishedImages, fetching
from ersde_lit.errors import UserError
from ersde_lit.files import replacing

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
COUNTS = {"train": 60_000, "test": 10_000}


class FashionMNIST(PublishedImages):
    """Zalando's 60,000 + 10,000 real 28x28 grey pictures of clothes (Xiao et al., 2017, arXiv:1708.07747).

    `root` holds `FashionMNIST/raw/`; it is filled from Debian's package dataset-fashion-mnist if that is installed,
    otherwise by a download.

    Flips are off by default: shoes all point to the left here, and a mirrored ankle boot lies three times its class's
    variance away from the real ones, so a model trained on both is far from the reference.
    """

    image_shape = (1, 28, 28)
    num_classes = 10
    class_names = (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip

    @property
    def raw(self) -> Path:
        return Path(self.root).expanduser() / "FashionMNIST" / "raw"

    def prepare_data(self) -> None:
        if all((self.raw / name).is_file() for name in FILES):
            return
        archives = {self.raw / name: md5 for name, md5 in Published.resources}
        remedy = f"go online, or install Debian's dataset-fashion-mnist, or put the unpacked {', '.join(FILES)} there"
        with fetching("Fashion-MNIST", self.raw, archives, remedy):
            if all((DEBIAN / f"{name}.gz").is_file() for name in FILES):
                for name in FILES:
                    _unpack(DEBIAN / f"{name}.gz", self.raw / name)
            else:
                Published(self.raw.parents[1], download=True)

    def load_published(self) -> tuple[Split, Split]:
        splits = []
        for part, count in COUNTS.items():
            try:
                raw = Published(self.raw.parents[1], train=part == "train")
                splits.append(Split(raw.data.view(count, *self.image_shape), raw.targets.view(count).long()))
            except (AssertionError, RuntimeError, ValueError, OSError) as error:
                raise UserError(f"the {part} files in {self.raw} are damaged: delete that folder and retry") from error
        return splits[0], splits[1]


def _unpack(packed: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target, concurrent=True) as partial, gzip.open(packed) as source, partial.open("wb") as out:
            shutil.copyfileobj(source, out)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RuntimeError(f"{packed} is damaged or cut short: {error}") from error
