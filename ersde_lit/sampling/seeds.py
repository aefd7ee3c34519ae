"""Parser of lists of seeds, as "0-499" or "3,7,10-12". A seed determines its image, whatever else is sampled."""

import re
from collections.abc import Sequence
from itertools import chain, pairwise

from ersde_lit.errors import UserError
from ersde_lit.names import MAX_SEED


def parse_ranges(text: str, option: str, like: str) -> list[range]:
    """Reads comma-separated whole numbers and inclusive ranges, in the order given: "3,10-12" -> [3..3], [10..12].

    Raises:
        ValueError: anything else, a range that runs downwards, or a number above `MAX_SEED`. Its line names `option`
            and what may be written, `like`.
    """
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,999})\s*(?:-\s*([0-9]{1,999})\s*)?", part)
        if match is None:
            raise UserError(f"{option} {text!r}: {part!r} is no number or range; write {like}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"{option} {text!r}: the range {part.strip()} runs downwards; write {last}-{first}")
        if last > MAX_SEED:
            raise UserError(f"{option} {text!r}: {last} is above the largest, 2^48 - 1 = {MAX_SEED}")
        ranges.append(range(first, last + 1))
    return ranges


def parse_seeds(text: str) -> Sequence[int]:
    """Reads a list of seeds: "0-499" or "3,7,10-12", in the order given. A single range stays a `range`, of any length.

    Raises:
        ValueError: as `parse_ranges`, or a seed given twice.
    """
    ranges = parse_ranges(text, "--seeds", "seeds as in 0-499 or 3,7,10-12")
    for before, after in pairwise(sorted(ranges, key=lambda r: r.start)):
        if after.start < before.stop:
            raise UserError(f"--seeds {text!r}: {after.start} is given twice")
    return ranges[0] if len(ranges) == 1 else list(chain.from_iterable(ranges))


def format_seeds(seeds: Sequence[int]) -> str:
    """The inverse of `parse_seeds`, short and in the same order: [3, 10, 11, 12] -> "3,10-12"."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in runs)
