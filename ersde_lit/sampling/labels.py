"""Class labels of the images to sample: a function of the seed alone, so that an image never depends on its company."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ersde_lit.sampling.seeds import parse_ranges


def labels_of_seeds(seeds: Sequence[int], num_classes: int) -> Tensor:
    """Random labels: int64 [len(seeds)], uniform over 0..num_classes-1; label k is a function of seed k alone.

    The seed goes through SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) as its counter and the upper 32 bits are scaled
    to the range (bias below num_classes / 2^32). The values are part of the file formats: never change them.
    """
    z = np.asarray(seeds, dtype=np.int64).astype(np.uint64)
    z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    labels = (z >> np.uint64(32)) * np.uint64(num_classes) >> np.uint64(32)
    return torch.from_numpy(labels.astype(np.int64))


def choose_labels(choice: str | None, seeds: Sequence[int], num_classes: int) -> Tensor | None:
    """What `--labels` says, as int64 [len(seeds)]; None for an unconditional model (num_classes = 0).

    Args:
        choice: None or "random": `labels_of_seeds`; "all": the classes in turn; "3" or "0,1,5-7": these in turn;
            "none": -1, unconditional, for models trained with label dropout. In turn is by seed, seed s taking entry s
            modulo their number, so here too a label follows from its seed.

    Raises:
        ValueError: a label outside 0..num_classes-1, any choice for an unconditional model, or unreadable text.
    """
    if num_classes == 0:
        if choice is not None:
            raise ValueError(f"--labels {choice!r}: the model is unconditional; leave --labels out")
        return None
    if choice is None or choice == "random":
        return labels_of_seeds(seeds, num_classes)
    if choice == "none":
        return torch.full((len(seeds),), -1)
    like = "random, all, none, or classes as in 3 or 0,1,5-7"
    turns = [range(num_classes)] if choice == "all" else parse_ranges(choice, "--labels", like)
    if (largest := max(turn[-1] for turn in turns)) >= num_classes:
        raise ValueError(f"--labels {choice!r}: no class {largest}; the model's are 0 to {num_classes - 1}")
    cycle = np.fromiter(chain.from_iterable(turns), dtype=np.int64)
    return torch.from_numpy(cycle[np.asarray(seeds, dtype=np.int64) % len(cycle)])


def check_labels(labels: Sequence[int] | Tensor, count: int, num_classes: int) -> Tensor:
    """`labels`, one an image, as int64 [count] on the CPU; -1 = unconditional.

    Raises:
        ValueError: not `count` whole numbers in -1..num_classes-1, or the model is unconditional.
    """
    if num_classes == 0:
        raise ValueError("labels were given, but the model is unconditional")
    checked = torch.as_tensor(labels).cpu()
    if checked.shape != (count,) or checked.is_floating_point() or checked.dtype == torch.bool:
        raise ValueError(f"labels are whole numbers, one an image: [{count}], not {checked.dtype} {[*checked.shape]}")
    if count and not (checked.min() >= -1 and checked.max() < num_classes):
        raise ValueError(f"labels run from {checked.min()} to {checked.max()}; the model's are 0 to {num_classes - 1}")
    return checked.long()
