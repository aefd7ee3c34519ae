"""ImageDataModule: base class of data sets of uint8 images, converted to floats by the batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ersde_lit.data.classes import about_empty
from ersde_lit.data.order import SeededOrder, run_seed
from ersde_lit.errors import UserError

Batch = tuple[Tensor, ...]  # images, labels and, for pairs, degraded images


class Split(NamedTuple):
    """A labelled part of a data set."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]

    @classmethod
    def unlabelled(cls, images: Tensor) -> "Split":
        return cls(images, torch.full((len(images),), -1))


class Batches(Dataset[Batch]):
    """Serves whole batches: float32 images in [-1, 1] and int64 labels; index k + len is image k mirrored."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> Batch:
        return tuple(part[0] for part in self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> Batch:
        given = torch.tensor(indices)
        index = given % len(self)
        images = self.split.images[index]
        if (mirrored := given >= len(self)).any():
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images / 127.5 - 1, self.split.labels[index]


def _as_is(batch: Any) -> Any:
    return batch


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images, all in memory, as float32 batches in [-1, 1] for training and as uint8 for evaluation.

    A subclass states `image_shape`, `num_classes` and `class_names`, and loads its splits.

    The training images come in an order that depends on the run's seed and the epoch alone, and a run that is resumed
    in mid-epoch goes on with the next of them.

    Args:
        batch_size: images a training step, over all devices and accumulated batches: Lightning's batches are that
            divided by (devices * accumulate_grad_batches). Training drops the incomplete last step of an epoch.
        horizontal_flip: mirror each training image with probability 1/2. The reference images stay as they are.

    Raises:
        ValueError: at `fit`, batch_size is not a multiple of (devices * accumulate_grad_batches), or exceeds the data.
    """

    image_shape: tuple[int, int, int]  # C, H, W
    num_classes: int  # 0: no labels
    class_names: tuple[str, ...] = ()

    def __init__(self, batch_size: int = 128, horizontal_flip: bool = False) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size, self.horizontal_flip = batch_size, horizontal_flip
        self._splits: dict[str, Split] = {}

    @property
    def description(self) -> str:
        """What FID compares with, in words."""
        return f"training images of {type(self).__name__}"

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Reads "train", "val" and "test". Nothing in "val" or "test" may be in "train"."""

    def setup(self, stage: str | None = None) -> None:
        if not self._splits:
            self._splits = self.load()
        if stage == "fit" and self.trainer is not None:
            devices, batches = self.trainer.world_size, self.trainer.accumulate_grad_batches
            if self.batch_size % (devices * batches):
                raise UserError(
                    f"batch_size {self.batch_size} cannot be shared by {devices} device(s) x {batches} accumulated "
                    f"batch(es): choose a multiple of {devices * batches}"
                )
            if devices * batches > 1:
                rank_zero_info(
                    f"A step is {self.batch_size} images: {devices} device(s) x {batches} accumulated batch(es) x "
                    f"{self.images_at_a_time} images."
                )
            for line in about_empty(self._splits["train"].labels.numpy(), self.num_classes, "image to train on"):
                rank_zero_info(f"Note: {line}, so no image of theirs will be sampled.")

    def split(self, name: str) -> Split:
        """The images and labels of "train", "val" or "test", whole; loads them at the first call."""
        self.setup()
        if name not in self._splits:
            raise UserError(f"no split named {name!r}: choose from {', '.join(self._splits)}")
        return self._splits[name]

    def held_out(self, count: int) -> Tensor:
        """At most `count` images of "test", uint8 [n, C, H, W]: a fixed random choice, as these may lie by class."""
        images = self.split("test").images
        if count >= len(images):
            return images
        return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]]

    def dataset(self, name: str) -> Batches:
        """Serves batches of a split."""
        return Batches(self.split(name))

    @property
    def variants(self) -> int:
        """Of a training image, among which each epoch draws: see `SeededOrder`."""
        return 2 if self.horizontal_flip else 1

    def batches(self, batch_size: int = 500, rank: int = 0, ranks: int = 1) -> Iterator[Tensor]:
        """Yields uint8 [n, C, H, W], the training images in order, never mirrored: every `ranks`-th batch from `rank`.

        These are what FID compares with.
        """
        yield from self.split("train").images.split(batch_size)[rank::ranks]

    def train_dataloader(self) -> DataLoader[Batch]:
        train = self.dataset("train")
        if self.batch_size > len(train):
            raise UserError(f"batch_size {self.batch_size} exceeds the {len(train)} training images: lower it")
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        order = SeededOrder(train, self.batch_size, rank, ranks, run_seed(), self.variants, self._images_done)
        return self._loader(train, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.dataset("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.dataset("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.test_dataloader()

    def _loader(self, dataset: Batches, sampler: SeededOrder | None = None) -> DataLoader[Batch]:
        return DataLoader(  # all by name: Lightning builds it anew with another sampler
            dataset=dataset,
            batch_size=self.images_at_a_time,
            sampler=sampler,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def images_at_a_time(self) -> int:
        """Batch size of one device."""
        if self.trainer is None:
            return self.batch_size
        return max(self.batch_size // (self.trainer.world_size * self.trainer.accumulate_grad_batches), 1)

    def _images_done(self) -> int:
        """Images of this epoch that this rank has had: not 0 where a run was resumed in mid-epoch."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0
        return done * self.images_at_a_time
