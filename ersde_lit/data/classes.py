"""Class names, labels of class folders, and classes without images."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

SHOWN = 20  # names or ranges on a line


def about_empty(labels: np.ndarray, num_classes: int, what: str = "image") -> tuple[str, ...]:
    """Note on the classes without images, if there are any: "classes 1 to 6 hold no image"."""
    edges = [-1, *np.unique(labels).tolist(), num_classes]
    empty = [(before + 1, after - 1) for before, after in pairwise(edges) if after - before > 1]
    if not (num_classes and empty):
        return ()
    parts = [f"{first}" if first == last else f"{first} to {last}" for first, last in empty[:SHOWN]]
    text = ", ".join(parts + ["..."] * (len(empty) > SHOWN))
    one = len(empty) == 1 and empty[0][0] == empty[0][1]
    return (f"class {text} holds no {what}" if one else f"classes {text} hold no {what}",)


def about_names(names: Sequence[str]) -> str:
    """Labels with their class names: all of them, or the first and the last."""
    pairs = [f"{label} = {name}" for label, name in enumerate(names)]
    return "labels: " + ", ".join(pairs if len(pairs) <= SHOWN else [*pairs[:3], "...", *pairs[-2:]])


def number_folders(names: Iterable[str]) -> dict[str, int]:
    """The label of each class folder.

    Whole numbers (0, 1, ..., 11, or 00, 01, ...) are their own labels, unless there are few of them and they run far
    beyond 1000, as years do: then they count in their order. Any other names count in the order of strings, as in
    torchvision.
    """
    folders = sorted(names)
    numbers = all(name.isascii() and name.isdigit() for name in folders)
    if numbers and len({*map(int, folders)}) == len(folders):
        folders.sort(key=int)
        if int(folders[-1]) < max(1000, 2 * len(folders)):
            return {name: int(name) for name in folders}
    return {name: label for label, name in enumerate(folders)}
