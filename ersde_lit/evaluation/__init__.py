"""How good the images are: features, FID, distances to the training images, and all of it while training."""

from ersde_lit.evaluation.callback import FIDCallback
from ersde_lit.evaluation.features import Classifier, Features, Recipe, classifier
from ersde_lit.evaluation.fid import FID, Statistics, statistics
from ersde_lit.evaluation.nearest import nearest_distances

__all__ = [
    "FID",
    "Classifier",
    "FIDCallback",
    "Features",
    "Recipe",
    "Statistics",
    "classifier",
    "nearest_distances",
    "statistics",
]
