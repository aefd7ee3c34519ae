"""Source: the base class of data sets that `convert` reads."""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

Resize = Literal["area", "lanczos"]


class Source(ABC):
    """Images that are read when asked for; everything else is known, and was checked, when the source was opened.

    Attributes:
        labels: int64 [N], 0 .. num_classes - 1, or -1 throughout where there are no classes.
        num_classes: 0 where there are none.
        class_names: one a class, or none at all.
        image_shape: (C, H, W) of what `read` returns.
        identity: changes with the files and with how they are read.
        notes: what else is to be said of them, a line each.
    """

    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, int, int]
    identity: str
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images of these indices, int64 [n]: uint8 [n, C, H, W]."""
