import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from ersde_lit.training.power_ema import WIDEST, Profile, combine, decay, gamma_of, sigma_rel_of
from ersde_lit.training.power_ema import _inner as inner

LENGTHS = (0.05, 0.10)


def snapshots(count: int, last: float = 1.0, lengths=LENGTHS) -> list[Profile]:
    return [Profile(gamma_of(length), last * (k + 1) / count) for k in range(count) for length in lengths]


def cumulative(profile: Profile, tau: float) -> float:
    return min(tau / profile.images, 1) ** (profile.gamma + 1)


@given(st.floats(1e-7, WIDEST))
def test_widths_and_exponents_are_inverse(sigma_rel: float) -> None:
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-14)


def test_widths_published() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)
    assert (gamma_of(WIDEST), sigma_rel_of(0)) == (0, pytest.approx(math.sqrt(1 / 12)))


@pytest.mark.parametrize("gamma", [0, 1, 7, 100])
def test_the_width_is_the_standard_deviation_of_the_density(gamma: int) -> None:
    mean, square = (Fraction(gamma + 1, gamma + 1 + power) for power in (1, 2))
    assert sigma_rel_of(gamma) == pytest.approx(math.sqrt(square - mean**2), rel=1e-14)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, math.nan, math.inf])
def test_widths_out_of_range_are_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match=r"sigma_rel must be above 0 and at most 0\.2887"):
        gamma_of(sigma_rel)


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_exponents_out_of_range_are_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must be a number of at least 0"):
        sigma_rel_of(gamma)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50), st.integers(0, 20))
def test_an_average_is_its_profile_s_integral_whatever_the_batches(batches: list[int], gamma: int) -> None:
    times = np.cumsum([0, *batches]).tolist()
    weights = [math.sin(time) for time in times[1:]]
    average = 0.0
    for (before, after), weight in zip(pairwise(times), weights, strict=True):
        kept = decay(gamma, before, after)
        average = kept * average + (1 - kept) * weight
    mass = [float(Fraction(time, times[-1]) ** (gamma + 1)) for time in times]
    assert average == pytest.approx(np.dot(np.diff(mass), weights), abs=1e-12)


@pytest.mark.parametrize("a", [Profile(0, 1.0), Profile(6.9, 0.3), Profile(17, 1.0)])
@pytest.mark.parametrize("b", [Profile(0.2, 1.0), Profile(6.9, 0.7), Profile(300, 0.3)])
def test_inner_products_are_integrals(a: Profile, b: Profile) -> None:
    def integrand(tau: float) -> float:
        return (1 - cumulative(a, tau)) * (1 - cumulative(b, tau))

    exact = sum(quad(integrand, low, high, epsabs=1e-13)[0] for low, high in pairwise((0, 0.3, 0.7, 1)))
    for one, other in ((a, b), (b, a)):
        assert inner(*map(np.float64, (*one, *other))) == pytest.approx(exact, rel=1e-10)


def test_the_error_is_that_of_a_random_walk() -> None:
    known, target = snapshots(10), Profile(gamma_of(0.17), 1.0)
    coefficients, error = combine(known, target)
    tau = (np.arange(2000) + 0.5) / 2000
    steps = np.random.default_rng(0).standard_normal((2000, 3000))  # of 3000 weights
    exact, *averages = (
        np.array([1 - cumulative(profile, t) for t in tau]) @ steps for profile in (target, *known)
    )  # each step has moved the mass that comes after it
    relative = np.linalg.norm(coefficients @ averages - exact) / np.linalg.norm(exact)
    assert relative == pytest.approx(error, rel=0.05)
    assert relative < 1e-3


def test_no_other_coefficients_are_better() -> None:
    known, target = snapshots(4), Profile(gamma_of(0.15), 1.0)
    best, error = combine(known, target)
    tau = np.linspace(0, 1, 20001)
    table = np.array([[cumulative(profile, t) for t in tau] for profile in (*known, target)])

    def distance(coefficients: np.ndarray) -> float:
        return float(np.linalg.norm(coefficients @ table[:-1] - table[-1]) / np.linalg.norm(1 - table[-1]))

    assert distance(best) == pytest.approx(error, rel=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        change = rng.standard_normal(len(known))
        assert distance(best + 1e-3 * (change - change.mean())) > error


@pytest.mark.parametrize("count", [1, 16, 64])
@pytest.mark.parametrize("which", [0, 1])
def test_a_tracked_average_is_found_again(count: int, which: int) -> None:
    known = snapshots(count, last=1e8)
    coefficients, error = combine(known, known[-2 + which])
    assert error < 1e-7
    assert coefficients == pytest.approx(np.eye(2 * count)[-2 + which], abs=1e-6)


@given(st.floats(0.03, 0.22), st.integers(0, 4), st.sampled_from([1.0, 2.5e9]))
def test_averages_of_a_polynomial(sigma_rel: float, power: int, last: float) -> None:
    known, target = snapshots(32, last), Profile(gamma_of(sigma_rel), last)

    def average(profile: Profile) -> float:  # of (tau / last)^power
        return (profile.gamma + 1) / (profile.gamma + 1 + power) * (profile.images / last) ** power

    combined = combine(known, target)[0] @ [average(profile) for profile in known]
    assert combined == pytest.approx(average(target), rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.12, 0.28, WIDEST])
def test_many_and_nearly_coinciding_snapshots_do_no_harm(sigma_rel: float) -> None:
    known = snapshots(256, last=1e6)
    nearly = [Profile(profile.gamma, profile.images - 1e-3) for profile in known[-2:]]
    coefficients, error = combine(known[:-2] + nearly + known[-2:], Profile(gamma_of(sigma_rel), 1e6))
    assert error < 2e-4
    assert coefficients.sum() == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(coefficients) < 20  # rounding of snapshots is not blown up
