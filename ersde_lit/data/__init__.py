"""Data sets, one file each, as LightningDataModules over uint8 images; conversion of others to memory-mapped arrays.

Digits come with scikit-learn; Fashion-MNIST and CIFAR-10 are downloaded to `data/`, or read from Debian's
`dataset-fashion-mnist` and from `cifar-10-python.tar.gz` there; Emoji is made of Debian's `fonts-noto-color-emoji`.
Images of your own, or ImageNet-64, are converted once, for `ImageArray`, and trained:

    python -m ersde_lit data SOURCE --out data/mine --size 32 --config_out configs/mine.yaml --minutes 60
    python -m ersde_lit fit --config configs/mine.yaml

The configuration is made for these images, this machine and this time: `sigma_data` is measured, and so is the speed of
networks of several sizes. For a folder that was converted before: `data data/mine --config_out configs/mine.yaml`.

SOURCE is EDM's zip or folder, downsampled ImageNet's `train_data_batch_*.npz`, an npz with `arr_0` uint8 [N, H, W, C]
and classes `arr_1` if it has them, as `sample` writes it, or a folder with a folder of images for each class (`--resize
lanczos --exif ignore` gives what EDM's tool makes of them). Images are what Pillow reads, turned as their EXIF says;
files left out and classes without images are named. A killed command resumes; `python -m ersde_lit data data/mine`
checks the result. A twentieth, at most 5,000 images, is held out; to train on all, pass `--val_size 0` and give
`ImageArray` a second folder as `val_root`. `sample --labels cat,dog` knows the folders' names.

`ImagePairs` are degraded and clean images, to train the restoration of the ones to the others: two folders of images
of equal names, or what `data DEGRADED --clean CLEAN --out data/pairs` makes of them.
"""

from ersde_lit.data.array import ImageArray
from ersde_lit.data.augment import Augment
from ersde_lit.data.base import ImageDataModule, Split
from ersde_lit.data.brain import BrainSlices
from ersde_lit.data.cifar10 import CIFAR10
from ersde_lit.data.digits import Digits
from ersde_lit.data.emoji import Emoji
from ersde_lit.data.fashion_mnist import FashionMNIST
from ersde_lit.data.image_pairs import ImagePairs

__all__ = [
    "CIFAR10",
    "Augment",
    "BrainSlices",
    "Digits",
    "Emoji",
    "FashionMNIST",
    "ImageArray",
    "ImageDataModule",
    "ImagePairs",
    "Split",
]
