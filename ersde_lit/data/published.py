"""Published data sets of files with checksums, found in a folder or downloaded to it."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torchvision.datasets.utils import check_integrity

from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.errors import UserError

TEST_IMAGES = 10_000


class PublishedImages(ImageDataModule):
    """Published training images and 10,000 test images.

    "train" is all training images (what FID compares with), "test" the test images, and "val" the first `val_size` of
    those in an order drawn by `seed`: enough for a steady validation loss at a fraction of the time.

    Args:
        root: folder of the files; filled by a download, or from an archive that the class names.
        batch_size: images a batch.
        val_size: images in "val", 1 to 10,000.
        seed: draws them.
        horizontal_flip: mirror half of the training images.

    Raises:
        UserError: the files are neither there nor available, or are not the published ones; says what to do.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 2000,
        seed: int = 0,
        horizontal_flip: bool = False,
    ) -> None:
        super().__init__(batch_size, horizontal_flip)
        if not 1 <= val_size <= TEST_IMAGES:
            raise UserError(f"val_size must be between 1 and {TEST_IMAGES}, not {val_size}")
        self.root, self.val_size, self.seed = root, val_size, seed

    @abstractmethod
    def prepare_data(self) -> None:
        """Puts the files in place. Lightning calls it on one rank only; `load` calls it again."""

    @abstractmethod
    def load_published(self) -> tuple[Split, Split]:
        """The training and the test images, once the files are in place."""

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        train, test = self.load_published()
        order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(self.seed))[: self.val_size]
        return {"train": train, "val": Split(test.images[order], test.labels[order]), "test": test}


@contextmanager
def fetching(name: str, folder: Path, archives: Mapping[Path, str], remedy: str) -> Iterator[None]:
    """Turns a failed download or unpacking into a UserError with the remedy; names a damaged archive, by its md5."""
    damaged = [path for path, md5 in archives.items() if path.is_file() and not check_integrity(path, md5)]
    try:
        yield
    except (OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        here = f"; the {damaged[0]} that was there is damaged or cut short: its md5 is wrong" if damaged else ""
        raise UserError(f"{name} is not in {folder} and could not be put there ({reason}){here}: {remedy}") from error
