"""Data sets, one file each, as LightningDataModules over in-memory uint8 images."""

from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.data.digits import Digits
from ersde_lit.data.fashion_mnist import FashionMNIST

__all__ = ["Digits", "FashionMNIST", "ImageDataModule", "Split"]
