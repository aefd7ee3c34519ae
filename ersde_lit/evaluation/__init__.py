"""How good the images are: features, FID, distances to the training images, and all of it while training."""

from .callback import FIDCallback
from .features import Classifier, Features, Recipe, classifier
from .fid import FID, Statistics, statistics
from .nearest import nearest_distances

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
