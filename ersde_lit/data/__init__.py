"""Data sets, one file each, as LightningDataModules over in-memory uint8 images."""

from .base import ImageDataModule, Split
from .digits import Digits
from .fashion_mnist import FashionMNIST

__all__ = ["Digits", "FashionMNIST", "ImageDataModule", "Split"]
