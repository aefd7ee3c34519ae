"""Class labels of images to sample, a function of the seed alone, so that images do not depend on the batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ersde_lit.errors import UserError

Trained = Sequence[int] | None  # the classes that had training images, ascending; None: all


def labels_for(
    seeds: Sequence[int], labels: Sequence[int] | Tensor | None, num_classes: int, trained: Trained = None
) -> Tensor | None:
    """The labels to sample these seeds with, int64 [len(seeds)] on the CPU; None for an unconditional model.

    Args:
        labels: one an image, -1 = unconditional; None draws them from the seeds (`labels_of_seeds`).
        num_classes: of the model; 0 where it is unconditional.
        trained: its classes that had training images; None: all.

    Raises:
        ValueError: not one whole number in -1..num_classes-1 an image, a class that was not trained, or any labels for
            an unconditional model.
    """
    if labels is None:
        return labels_of_seeds(seeds, num_classes, trained) if num_classes else None
    if num_classes == 0:
        raise UserError("labels were given, but the model is unconditional")
    given = torch.as_tensor(labels).cpu()
    integral = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if given.shape != (len(seeds),) or not integral:
        raise UserError(f"labels are whole numbers, one an image: [{len(seeds)}], not {given.dtype} {[*given.shape]}")
    checked = given.long()
    if len(checked) and not (checked.min() >= -1 and checked.max() < num_classes):
        raise UserError(f"labels run from {checked.min()} to {checked.max()}; the model's are 0 to {num_classes - 1}")
    if untrained := {*checked.unique().tolist()} - {-1} - {*trained_of(num_classes, trained)}:
        raise UserError(f"labels: class {min(untrained)} had no training image")
    return checked


def trained_of(num_classes: int, trained: Trained) -> Sequence[int]:
    """The classes that can be sampled."""
    return range(num_classes) if trained is None else trained


def labels_of_seeds(seeds: Sequence[int], num_classes: int, trained: Trained = None) -> Tensor:
    """Random labels: int64 [len(seeds)], uniform over the classes that were trained (0..num_classes-1 where all were).

    Label k is a function of seed k alone. The seed goes through SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) as its
    counter and the upper 32 bits are scaled to the range (bias below num_classes / 2^32). The values are part of the
    file formats: never change them.
    """
    count = num_classes if trained is None else len(trained)
    z = np.asarray(seeds, dtype=np.int64).astype(np.uint64)
    z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    labels = torch.from_numpy(((z >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64))
    return labels if trained is None else torch.tensor(trained)[labels]
