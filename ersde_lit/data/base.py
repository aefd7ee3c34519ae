"""What every data set here shares: uint8 images in memory, converted a batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]


class Split(NamedTuple):
    """A labelled part of a data set."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]


class _Batches(Dataset[Batch]):
    """Serves whole batches: float32 images in [-1, 1] and int64 labels, each mirrored half of the time if `flip`."""

    def __init__(self, split: Split, flip: bool = False) -> None:
        self.split, self.flip = split, flip

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        images = self.split.images[index]
        if self.flip:
            mirrored = torch.rand(len(index), 1, 1, 1) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        return images / 127.5 - 1, self.split.labels[index]


def _as_is(batch: Any) -> Any:
    return batch


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images, all in memory, as float32 batches in [-1, 1] for training and as uint8 for evaluation.

    A subclass states `image_shape`, `num_classes` and `class_names`, and loads its splits.

    Args:
        batch_size: images a batch; training drops the incomplete last one, validation and test keep it.
        horizontal_flip: mirror each training image with probability 1/2. The reference images stay as they are.
    """

    image_shape: tuple[int, int, int]  # C, H, W
    num_classes: int  # 0: no labels
    class_names: tuple[str, ...] = ()

    def __init__(self, batch_size: int = 128, horizontal_flip: bool = False) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size, self.horizontal_flip = batch_size, horizontal_flip
        self._splits: dict[str, Split] = {}

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Reads "train", "val" and "test". Nothing in "val" or "test" may be in "train"."""

    def setup(self, stage: str | None = None) -> None:
        if not self._splits:
            self._splits = self.load()

    def split(self, name: str) -> Split:
        """The images and labels of "train", "val" or "test", whole; loads them at the first call."""
        self.setup()
        if name not in self._splits:
            raise ValueError(f"no split named {name!r}: choose from {', '.join(self._splits)}")
        return self._splits[name]

    def labelled_images(self, split: str, chunk: int = 500) -> Iterator[Batch]:
        """Yields (uint8 [n, C, H, W], int64 [n]) with n <= chunk, in order, never mirrored."""
        images, labels = self.split(split)
        yield from zip(images.split(chunk), labels.split(chunk), strict=True)

    def reference_images(self, chunk: int = 500) -> Iterator[Tensor]:
        """Yields uint8 [n, C, H, W]: the training images, in order, never mirrored: what FID compares with."""
        return (images for images, _ in self.labelled_images("train", chunk))

    def train_dataloader(self) -> DataLoader[Batch]:
        train = self.split("train")
        if self.batch_size > len(train.labels):
            raise ValueError(f"batch_size {self.batch_size} exceeds the {len(train.labels)} training images: lower it")
        return self._loader(_Batches(train, flip=self.horizontal_flip), shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(_Batches(self.split("val")))

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(_Batches(self.split("test")))

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.test_dataloader()

    def _loader(self, dataset: _Batches, shuffle: bool = False, drop_last: bool = False) -> DataLoader[Batch]:
        return DataLoader(  # all by name: Lightning builds it anew with another sampler
            dataset=dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
        )
