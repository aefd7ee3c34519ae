"""What `--labels` says: class labels as a function of the seed alone, so that no image depends on its company."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ersde_lit.denoisers.labels import labels_of_seeds
from ersde_lit.sampling.seeds import parse_ranges


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
