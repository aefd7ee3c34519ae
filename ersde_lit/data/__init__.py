"""Data sets as LightningDataModules over uint8 images, and conversion of other data sets to one array."""

from ersde_lit.data.array import ImageArray
from ersde_lit.data.augment import Augment
from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.data.cifar10 import CIFAR10
from ersde_lit.data.digits import Digits
from ersde_lit.data.emoji import Emoji
from ersde_lit.data.fashion_mnist import FashionMNIST

__all__ = ["CIFAR10", "Augment", "Digits", "Emoji", "FashionMNIST", "ImageArray", "ImageDataModule", "Split"]
