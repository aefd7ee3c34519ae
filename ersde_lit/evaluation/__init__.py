"""How good the images are: features, FID and its kin, distances to the training images, and all of it while training.

`Scores(features_for("inception"), read_reference("cifar10.npz", ...))` measures uint8 images as published FIDs are.
"""

from ersde_lit.evaluation.callback import FIDCallback
from ersde_lit.evaluation.classifier import Classifier, Recipe, classifier
from ersde_lit.evaluation.features import Features, features_for
from ersde_lit.evaluation.fid import FrechetDistance, Statistics, statistics
from ersde_lit.evaluation.image_files import ImageFiles, image_batches, image_files
from ersde_lit.evaluation.inception import Inception
from ersde_lit.evaluation.manifold import precision_recall
from ersde_lit.evaluation.nearest import nearest_distances
from ersde_lit.evaluation.reference import Reference, read_reference, reference_of, write_reference
from ersde_lit.evaluation.scores import METRICS, MetricName, Scores, too_few

__all__ = [
    "METRICS",
    "Classifier",
    "FIDCallback",
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
