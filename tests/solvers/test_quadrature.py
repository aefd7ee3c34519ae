import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from ersde_lit.solvers import NoiseScale, noise_scale, power, window
from ersde_lit.solvers.quadrature import lagrange_basis, lagrange_integrals

double = partial(torch.tensor, dtype=torch.float64)


def monomial(p: float, start: float, end: float, m: int) -> float:
    """Integral of ``p (end / l)^p l^m`` over ln l from ln end to ln start, in closed form."""
    h = math.log(start / end)
    return p * end**m * (math.expm1((m - p) * h) / (m - p) if m != p else h)  # exact where m is almost p, too


@settings(deadline=None)
@given(
    st.one_of(st.sampled_from([1.0, 1.5, 2.0, 2.5, 3.0]), st.floats(1.01, 4)),
    st.integers(1, 6),
    st.floats(1e-3, 100),
    st.floats(0.05, 0.97),
)
def test_powers_have_a_closed_form(p: float, k: int, start: float, ratio: float) -> None:
    """The weights integrate every polynomial that k nodes determine."""
    end = start * ratio
    nodes = start * ratio ** -torch.arange(k, dtype=torch.float64)
    weights = lagrange_integrals(power(p), double([start]), double([end]), nodes[None], lambda lam: lam)[0]
    for m in range(k):
        expected = monomial(p, start, end, m)
        terms = weights * nodes**m
        assert abs(terms.sum().item() - expected) <= 1e-12 * (terms.abs().sum().item() + abs(expected))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_logarithmic_nodes_have_a_closed_form(p: float) -> None:
    start, end = 3.0, 0.5
    h = math.log(start / end)
    got = lagrange_integrals(
        power(p),
        double([start]),
        double([end]),
        double([[start, 2 * start]]),
        torch.log,
    )
    # Integral of p e^{-p x} (x - h) over x = ln(l / end) from 0 to h.
    slope = 1 / p - h - math.exp(-p * h) / p
    expected = -math.expm1(-p * h) - slope / math.log(2)
    torch.testing.assert_close(got[0, 0].item(), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(got.sum().item(), -math.expm1(-p * h), rtol=1e-13, atol=0)


SCALES = [
    *(noise_scale(f"er_sde_{k}") for k in range(1, 6)),
    window(1, 0.3, 3, 0.1),
    window(5, 0.9, 1.1, 0.1),
    window(20, 0.01, 50, 0.3),
]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize(("start", "end"), [(80.0, 0.002), (80.0, 20.0), (3.0, 0.1), (0.05, 0.002), (1.0, 0.999)])
@pytest.mark.parametrize("s", [0.0, 0.5, 0.02])
def test_agrees_with_adaptive_quadrature(scale: NoiseScale, start: float, end: float, s: float) -> None:
    def u(lam: torch.Tensor) -> torch.Tensor:
        return torch.asinh(lam / s) if s else lam

    nodes = double([[start, 1.3 * start, 2 * start]])
    got = lagrange_integrals(scale, double([start]), double([end]), nodes, u)[0]
    edges = [math.log(x) for x in (0.01, 0.3, 0.9, 1.1, 3, 50) if end < x < start]

    def integrand(v: float, j: int) -> float:
        lam = double([math.exp(v)])
        ratio = scale.phi(double([end])) / scale.phi(lam)
        return (scale.kappa(lam) * ratio * lagrange_basis(u(nodes), u(lam)[None])[0, j]).item()

    for j in range(3):
        expected = sum(
            integrate.quad(integrand, low, high, args=(j,), epsabs=1e-14, epsrel=1e-13)[0]
            for low, high in pairwise(sorted({math.log(end), *edges, math.log(start)}))
        )
        assert got[j].item() == pytest.approx(expected, rel=1e-11, abs=2e-12)


def test_steps_of_one_call_are_independent() -> None:
    """A short step is not spoilt by a long one beside it, which sets the number of panels."""
    starts, ends = double([80.0, 1.0]), double([0.002, 0.99])
    nodes = torch.stack([starts, 2 * starts], dim=1)
    both = lagrange_integrals(noise_scale("er_sde_5"), starts, ends, nodes, torch.log)
    for i in range(2):
        one = lagrange_integrals(noise_scale("er_sde_5"), starts[i, None], ends[i, None], nodes[i, None], torch.log)
        torch.testing.assert_close(both[i], one[0], rtol=1e-13, atol=1e-15)


def test_basis_is_one_at_its_node_and_zero_at_others() -> None:
    nodes = double([[3.0, 1.0, -2.0, 0.5]])
    torch.testing.assert_close(lagrange_basis(nodes, nodes)[0], torch.eye(4).double())
