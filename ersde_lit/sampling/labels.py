"""Class labels from `--labels`, a function of the seed alone, so that images do not depend on the batch."""

import difflib
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ersde_lit.denoisers import Denoiser
from ersde_lit.denoisers.labels import Trained, labels_of_seeds, trained_of
from ersde_lit.errors import UserError
from ersde_lit.sampling.seeds import format_seeds, parse_ranges

LIKE = "random, all, none, or classes as in 3 or 0,1,5-7"


def labels_of(denoiser: Denoiser, choice: str | int | None, seeds: Sequence[int]) -> Tensor | None:
    """`choose_labels` for a denoiser, guided or not."""
    trained, names = (getattr(denoiser, name, None) for name in ("trained_classes", "class_names"))
    return choose_labels(None if choice is None else str(choice), seeds, denoiser.num_classes, trained, names or ())


def choose_labels(
    choice: str | None, seeds: Sequence[int], num_classes: int, trained: Trained = None, names: Sequence[str] = ()
) -> Tensor | None:
    """The labels of `--labels`, int64 [len(seeds)]; None for an unconditional model (num_classes = 0).

    Args:
        choice: None or "random": `labels_of_seeds`; "all": the trained classes in turn; "3", "0,1,5-7", "cat" or
            "cat,dog,3": these in turn; "none": -1, unconditional, for models trained with label dropout. In turn is by
            seed, seed s taking entry s modulo their number, so here too a label follows from its seed. The words count
            before numbers, and numbers and ranges before names; the number of one class that is the name of another is
            refused.
        trained: the classes that had training images, ascending; None: all.
        names: one a class, or none at all.

    Raises:
        ValueError: a label outside 0..num_classes-1 or not trained, a name that is unknown or of several classes, any
            choice for an unconditional model, or unreadable text.
    """
    if num_classes == 0:
        if choice is not None:
            raise UserError(f"--labels {choice!r}: the model is unconditional; leave --labels out")
        return None
    if choice is None or choice == "random":
        return labels_of_seeds(seeds, num_classes, trained)
    if choice == "none":
        return torch.full((len(seeds),), -1)
    turns = [trained_of(num_classes, trained)] if choice == "all" else _parse(choice, names)
    if (largest := max(turn[-1] for turn in turns)) >= num_classes:
        raise UserError(f"--labels {choice!r}: no class {largest}; the model's are 0 to {num_classes - 1}")
    cycle = np.fromiter(chain.from_iterable(turns), dtype=np.int64)
    if untrained := {*cycle.tolist()} - {*trained_of(num_classes, trained)}:
        which, had = min(untrained), format_seeds(trained or ())
        raise UserError(f"--labels {choice!r}: class {which} had no training image; choose from {had}")
    return torch.from_numpy(cycle[np.asarray(seeds, dtype=np.int64) % len(cycle)])


def _parse(choice: str, names: Sequence[str]) -> list[range]:
    """Numbers, ranges and names, in the order given. A name may have a comma in it where it stands alone."""
    parts = [choice] if choice in names else choice.split(",")
    return [*chain.from_iterable(_part(part.strip(), choice, names) for part in parts)]


def _part(part: str, choice: str, names: Sequence[str]) -> list[range]:
    found = [label for label, name in enumerate(names) if name == part]
    if not names or re.fullmatch(r"[0-9]+(\s*-\s*[0-9]+)?", part):
        as_number = parse_ranges(part, "--labels", LIKE)
        if not (found and part.isdigit()) or int(part) in found:
            return as_number
        if int(part) < len(names):
            raise UserError(
                f"--labels {choice!r}: {part} is the number of class {names[int(part)]!r} and the name of class "
                f"{found[0]}: write {part}-{part} or {found[0]}-{found[0]}"
            )
    if len(found) == 1:
        return [range(found[0], found[0] + 1)]
    if found:
        raise UserError(f"--labels {choice!r}: classes {format_seeds(found)} are all named {part!r}; give the number")
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(part.casefold(), folded, 1)
    hint = f"did you mean {folded[near[0]]!r}?" if near else f"the model's are {', '.join(map(repr, names[:3]))}, ..."
    raise UserError(f"--labels {choice!r}: no class is named {part!r}; {hint}")
