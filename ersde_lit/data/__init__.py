"""Data sets, one file each, as LightningDataModules over uint8 images; conversion of others to memory-mapped arrays.

Digits come with scikit-learn; Fashion-MNIST and CIFAR-10 are downloaded to `data/`, or read from Debian's
`dataset-fashion-mnist` and from `cifar-10-python.tar.gz` there; Emoji is made of Debian's `fonts-noto-color-emoji`.
ImageNet-64, or images of your own, are converted once, for `ImageArray`:

    mkdir -p data && python -m ersde_lit data SOURCE --out data/imagenet64 --size 64

SOURCE is EDM's zip or folder, downsampled ImageNet's `train_data_batch_*.npz`, or a folder with a folder of images for
each class (`--resize lanczos --exif ignore` gives what EDM's tool makes of them). Images are whatever Pillow reads,
turned as their EXIF says; files left out and classes without images are named. A killed command resumes;
`python -m ersde_lit data data/imagenet64` checks the result. A twentieth, at most 5,000 images, is held out; to train
on all, pass `--val_size 0` and give `ImageArray` a second folder as `val_root`. `sample --labels cat,dog` knows the
folders' names.
"""

from ersde_lit.data.array import ImageArray
from ersde_lit.data.augment import Augment
from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.data.cifar10 import CIFAR10
from ersde_lit.data.digits import Digits
from ersde_lit.data.emoji import Emoji
from ersde_lit.data.fashion_mnist import FashionMNIST

__all__ = ["CIFAR10", "Augment", "Digits", "Emoji", "FashionMNIST", "ImageArray", "ImageDataModule", "Split"]
