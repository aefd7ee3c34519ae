"""Checks that an option is a number of the right kind; messages are the caller's."""

import math
from collections.abc import Sequence
from numbers import Integral, Real


def is_integer(value: object, low: int, high: float = math.inf) -> bool:
    """A whole number from low to high, no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def is_number(value: object, low: float, high: float = math.inf) -> bool:
    """A finite number from low to high, no bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return low <= float(value) <= high and math.isfinite(value)


def is_positive(value: object) -> bool:
    """A finite number above 0."""
    return is_number(value, 0) and value != 0


def is_interval(value: object) -> bool:
    """(low, high) with 0 <= low <= high, which may be infinite."""
    if not isinstance(value, Sequence) or len(value) != 2:
        return False
    low, high = value
    return isinstance(low, Real) and isinstance(high, Real) and 0 <= float(low) <= float(high)
