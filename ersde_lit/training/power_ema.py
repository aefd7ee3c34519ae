"""Power-function averages of weights: widths, decay factors, and combinations of averages.

The average of width gamma at t images is the mean of the weights w(tau) over tau in (0, t] with density proportional to
tau^gamma. Its relative width sigma_rel is the standard deviation of that density divided by t: 0.10 says that the
average reaches back over about a tenth of the training, however long that is. (Karras et al. 2024, arXiv:2312.02696,
sections 3.1 and 3.2, appendix C.)
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ersde_lit.errors import UserError

WIDEST = 1 / math.sqrt(12)  # sigma_rel of gamma = 0, the plain mean of all weights


class Profile(NamedTuple):
    """The density (gamma + 1) tau^gamma / images^(gamma + 1) on (0, images]."""

    gamma: float
    images: float


def sigma_rel_of(gamma: float) -> float:
    """Relative width of an exponent gamma >= 0 (equation 123): in (0, `WIDEST`]."""
    if not 0 <= gamma < math.inf:
        raise UserError(f"gamma must be a number of at least 0, got {gamma}")
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """Exponent of a relative width in (0, `WIDEST`]: the inverse of `sigma_rel_of`."""
    if not 0 < sigma_rel <= WIDEST:
        raise UserError(f"sigma_rel must be above 0 and at most {WIDEST:.4f} (the plain mean), got {sigma_rel}")
    # With k = 1 / (gamma + 2), sigma_rel = k sqrt((1 - k) / (1 + k)): concave and rising up to k = 1/2, so Newton's
    # method comes from the left without overstepping, and k has full relative precision.
    k = sigma_rel
    for _ in range(10):
        width = k * math.sqrt((1 - k) / (1 + k))
        k += (sigma_rel / width - 1) / (1 / k - 1 / (1 - k * k))
    return max(1 / k - 2, 0.0)


def decay(gamma: float, before: int, after: int) -> float:
    """Decay factor of a step from `before` images to `after` (equation 127).

    The factors telescope: each average is exactly its profile's integral over weights that stay the same from one step
    to the next, whatever the batch sizes.
    """
    return (before / after) ** (gamma + 1)


def combine(known: list[Profile], target: Profile) -> tuple[NDArray[np.float64], float]:
    """Fits a target profile by a sum of n known ones, by constrained least squares in float64.

    The averages' error is the integral of (sum_i c_i p_i - p) w = -integral of (sum_i c_i P_i - P) dw, P being the
    cumulative profiles and sum_i c_i = 1. Weights move far more like a random walk than like white noise, so it is the
    difference of the cumulative profiles whose square is made least here. (The paper's algorithm 3 takes the densities
    themselves. Near tracked lengths the two differ little; at a sigma_rel of 0.25 this is 20 to 40 times nearer.)

    Returns:
        The coefficients [n], of sum 1, and the expected relative error of the averaged weights, were they a random walk
        from 0.
    """
    gammas, images = (np.array(column, dtype=np.float64) for column in zip(*known, target, strict=True))
    scale = images[-1]
    inner = _inner(gammas[:, None], images[:, None] / scale, gammas, images / scale)
    norms = np.sqrt(np.diag(inner))
    matrix, count = inner / np.outer(norms, norms), len(known)
    # Lagrange: the last row and column are the constraint. lstsq, as snapshots may nearly coincide.
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = matrix[:count, :count]
    system[count, :count] = system[:count, count] = 1 / norms[:count]
    right = np.append(matrix[:count, count], 1 / norms[count])
    scaled = np.linalg.lstsq(system, right, rcond=1e-14)[0][:count]
    coefficients = scaled / norms[:count] * norms[count]
    coefficients /= coefficients.sum()
    difference = np.append(coefficients * norms[:count] / norms[count], -1)
    return coefficients, math.sqrt(max(difference @ matrix @ difference, 0))


def _inner(
    gamma_a: NDArray[np.float64], a: NDArray[np.float64], gamma_b: NDArray[np.float64], b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Integrals over tau of (1 - P_a)(1 - P_b), where P(tau) = min(tau / images, 1)^(gamma + 1)."""
    a, b, p, q = np.broadcast_arrays(a, b, gamma_a + 1, gamma_b + 1)
    first = a <= b
    p, q = np.where(first, p, q), np.where(first, q, p)  # p is the exponent of the one that ends first
    short, long = np.minimum(a, b), np.maximum(a, b)
    return short * p * (1 / (p + 1) - (short / long) ** q / ((q + 1) * (p + q + 1)))
