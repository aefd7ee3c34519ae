"""Image metrics: features, FID, KID, IS, precision and recall, distances to the training images, reference statistics.

`Scores(features_for("inception"), read_reference("cifar10.npz", ...))` measures uint8 images as published FIDs are.
"""

from ersde_lit.metrics.choose import features_for
from ersde_lit.metrics.classifier import Classifier, Recipe, classifier
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.frechet import FrechetDistance, Statistics, statistics
from ersde_lit.metrics.image_files import ImageFiles, image_batches, image_files
from ersde_lit.metrics.inception import Inception
from ersde_lit.metrics.nearest import nearest_distances
from ersde_lit.metrics.precision_recall import precision_recall
from ersde_lit.metrics.reference import Reference, read_reference, reference_of, write_reference
from ersde_lit.metrics.scores import METRICS, MetricName, Scores, too_few

__all__ = [
    "METRICS",
    "Classifier",
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
    "image_batches",
    "image_files",
    "nearest_distances",
    "precision_recall",
    "read_reference",
    "reference_of",
    "statistics",
    "too_few",
    "write_reference",
]
