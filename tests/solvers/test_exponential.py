import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ersde_lit.solvers import exponential
from ersde_lit.solvers.ersde import ERSDE
from ersde_lit.solvers.noise_scale import power as power_law


@pytest.mark.parametrize("z", [1e-9, 1e-3, 0.3, 0.999, 1.001, 4.0, 20.0, -1e-3, -0.999, -1.001, -4.0])
def test_moments_are_the_integrals(z: float) -> None:
    u, w = np.polynomial.legendre.leggauss(64)
    u, w = (u + 1) / 2, w / 2
    exact = [(w * z * np.exp(-z * (1 - u)) * u**k).sum() for k in range(5)]
    assert np.allclose(exponential.moments(z, 5), exact, rtol=1e-12, atol=0)


@settings(deadline=None)
@example([1.0, 0.01, 0.01, 0.01, 1.0], 1.0, 4, 0)
@given(st.lists(st.floats(0.01, 3), min_size=5, max_size=5), st.floats(1, 3), st.integers(1, 4), st.integers(0, 4))
def test_rows_hold_constants_and_marginals(gaps: list[float], power: float, order: int, corrector: int) -> None:
    lams = 80 * torch.tensor([0, *gaps], dtype=torch.float64).cumsum(0).neg().exp()
    orders = exponential.ramp(5, order, down=False)
    corrected = [min(corrector, k + 1) for k in orders]
    table = exponential.multistep(lams, orders, powers=[power] * 5, corrector_orders=corrected)
    one = torch.ones(5, dtype=torch.float64)
    rounding = 1e-12 * (1 + table.c.abs().sum(1))  # gaps of unequal size make large coefficients that cancel
    assert ((table.r + table.c.sum(1) - one).abs() < rounding).all()
    torch.testing.assert_close(table.b**2 + (lams[:-1] * table.r) ** 2, lams[1:] ** 2, rtol=1e-12, atol=0)
    if corrector:
        assert table.corrector is not None
        rounding = 1e-12 * (1 + table.corrector.abs().sum(1))
        assert ((table.r + table.corrector.sum(1) - one).abs() < rounding)[:-1].all()
        assert not table.corrector[-1].any()
    else:
        assert table.corrector is None


def test_weights_integrate_polynomials_in_log_lam() -> None:
    """x0 = 1 + u + u^2 is put through three nodes exactly: y_t against a fine integral of the formula."""
    lams = torch.tensor([40.0, 10.0, 3.0, 2.0], dtype=torch.float64)
    u = exponential.nodes(lams, 2, 2, 3)
    z = 1.7 * (lams[2] / lams[3]).log().item()
    s = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    exact = torch.trapezoid(z * (-z * (1 - s)).exp() * (1 + s + s**2), s)
    assert exponential.weights(exponential.moments(z, 3), u) @ (1 + u + u**2) == pytest.approx(exact.item(), abs=1e-9)
    assert u[0] == 0
    assert u[1] == pytest.approx(-np.log(10 / 3) / np.log(3 / 2))


@pytest.mark.parametrize(("power", "order"), [(1, 1), (1, 2), (1, 4), (1.5, 2), (2, 2)])
def test_is_er_sde_with_log_nodes(edm_lams, power, order) -> None:
    """ER-SDE takes the same integrals by quadrature."""
    lams = edm_lams(20, 0)
    orders = exponential.ramp(20, order, down=False)
    ours = exponential.multistep(lams, orders, powers=[power] * 20, corrector_orders=[k + 1 for k in orders])
    er = ERSDE(order, power_law(power), corrector=order + 1, nodes="log").tableau(lams)
    for name in ("r", "c", "b", "corrector"):
        torch.testing.assert_close(getattr(ours, name), getattr(er, name), rtol=0, atol=1e-11)


def test_step_into_zero_is_x0() -> None:
    lams = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    table = exponential.multistep(lams, [1, 2], powers=[2.0, 2.0], corrector_orders=[2, 3])
    assert table.r[-1] == 0
    assert table.b[-1] == 0
    assert table.c[-1].tolist() == [1, 0]
    assert table.corrector is not None
    assert not table.corrector[-1].any()
