import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ersde_lit.solvers import (
    DDIM,
    ERSDE,
    NoiseScale,
    SeededNoise,
    custom,
    eta,
    grids,
    noise_scale,
    power,
    sample,
    window,
)
from ersde_lit.solvers.oracles import Gaussian, Mixture, output_law, w2_error

PUBLISHED = ["ode", "sde", *(f"er_sde_{k}" for k in range(1, 6))]
MIXTURE = Mixture(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.tensor([[0.8, -0.5, 0.3], [-0.6, 0.4, -0.9]], dtype=torch.float64),
    torch.tensor([[0.3], [0.05]], dtype=torch.float64),
)


@st.composite
def scales(draw: st.DrawFn) -> NoiseScale:
    low = draw(st.floats(1e-3, 10))
    return draw(
        st.one_of(
            st.sampled_from(PUBLISHED).map(noise_scale),
            st.floats(1, 4).map(power),
            st.builds(eta, st.sampled_from(PUBLISHED), st.floats(0, 2)),
            st.builds(window, st.floats(0, 5), st.just(low), st.floats(1.05 * low, 1e3), st.floats(0.1, 2)),
            st.just(custom(lambda x: x * (1 + x))),
        )
    )


@settings(deadline=None, max_examples=200)
@given(
    scales(),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 5)),
    st.one_of(
        st.just({}),
        st.builds(lambda s, relative: {"nodes": s, "relative": relative}, st.floats(0.01, 10), st.booleans()),
    ),
    st.floats(0.01, 1000),
    st.one_of(st.floats(1e-4, 0.999), st.sampled_from([0.999, 1e-4])),
    st.booleans(),
)
def test_rows(scale, order: int, corrector: int | None, nodes: dict, lam_max: float, ratio: float, zero: bool) -> None:
    """A constant x0 is kept, and so is the noise level of a run that knows x0."""
    lams = lam_max * ratio ** torch.arange(8, dtype=torch.float64)
    if zero:
        lams = torch.cat([lams, torch.zeros(1, dtype=torch.float64)])
    tableau = ERSDE(order, scale, corrector, **nodes).tableau(lams)
    ones = tableau.r + tableau.c.sum(1)
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-12)
    torch.testing.assert_close(tableau.b**2 + (lams[:-1] * tableau.r) ** 2, lams[1:] ** 2, rtol=1e-12, atol=0)
    assert (tableau.b >= 0).all()
    if corrector is not None:
        assert tableau.corrector is not None
        corrected = tableau.corrector[: 7 if zero else 6]
        torch.testing.assert_close(
            corrected.sum(1), tableau.c[: len(corrected)].sum(1), rtol=0, atol=1e-12, msg="corrector"
        )
        assert not tableau.corrector[len(corrected) :].any()


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("corrector", [None, 1, 3])
def test_history_ramps_up_and_the_step_to_zero_is_x0(order: int, corrector: int | None) -> None:
    tableau = ERSDE(order, corrector=corrector).tableau(grids.edm(6))
    used = (tableau.c != 0).sum(1)
    assert used.tolist() == [min(order, i + 1) for i in range(5)] + [1]
    assert tableau.r[-1] == tableau.b[-1] == 0
    assert tableau.c[-1, 0] == 1
    if corrector is None:
        assert tableau.corrector is None
    else:
        assert tableau.corrector is not None
        assert (tableau.corrector != 0).sum(1).tolist() == [min(corrector, i + 2) for i in range(5)] + [0]


def test_every_row_is_full_without_a_final_zero() -> None:
    tableau = ERSDE(2, corrector=2).tableau(grids.edm(4, zero=False))
    assert (tableau.c[1:] != 0).all()
    assert tableau.corrector is not None
    assert (tableau.corrector[:-1] != 0).all()
    assert not tableau.corrector[-1].any()  # no call follows the last step


@pytest.mark.parametrize("n", [1, 2, 3])
def test_short_grids(n: int) -> None:
    for lams in (grids.edm(n), grids.edm(n, zero=False)):
        tableau = ERSDE(5, corrector=6).tableau(lams)
        published = ERSDE(3, paper=True).tableau(lams)
        assert tableau.c.shape == (n, 5)
        assert published.c.shape == (n, 3)
        assert all(field.isfinite().all() for field in (*tableau[:5], *published[:4]))


@given(st.integers(1, 12))
def test_order_1_is_ddim_and_ddpm(n: int) -> None:
    lams = grids.edm(n)
    for name, other in (("ode", DDIM(0)), ("sde", DDIM(1))):
        ours, theirs = ERSDE(1, name).tableau(lams), other.tableau(lams)
        for field in "rcb":
            torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), rtol=1e-12, atol=1e-14)


# Orders


@pytest.mark.parametrize("nodes", ["lam", "log", 0.5, "relative"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_rows_have_their_order(local_order, order: int, nodes) -> None:
    options = {"nodes": 2.0, "relative": True} if nodes == "relative" else {"nodes": nodes}
    assert local_order(ERSDE(order, "ode", **options)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [5, 6])
def test_rows_of_high_order(local_order, order: int) -> None:
    assert local_order(ERSDE(order, "ode")) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_correctors_have_their_order(local_order, order: int) -> None:
    assert local_order(ERSDE(1, "ode", corrector=order), corrector=True) == pytest.approx(order, abs=0.15)


STD = 0.4


def one_gaussian(y: Tensor, lam: Tensor) -> Tensor:
    return STD**2 / (STD**2 + lam**2) * y


def slope(errors: list[float]) -> float:
    """Of errors at grids of which each is twice as fine as the one before."""
    n = torch.arange(len(errors), dtype=torch.float64) * math.log(2)
    return -torch.linalg.lstsq(torch.stack([n, n**0], 1), torch.tensor(errors).double().log()).solution[0].item()


def cold_start_error(solver: ERSDE, n: int) -> float:
    """Of a whole run of the ODE, from its exact start."""
    lams = grids.log_uniform(n, 0.05, 5, zero=False)
    start, end = (lams[[0, -1]] ** 2 + STD**2).sqrt()
    return abs(sample(one_gaussian, solver.tableau(lams), start) - end).item()


@pytest.mark.parametrize(("order", "corrector", "expected"), [(1, None, 1), (2, None, 2), (4, None, 2), (3, 3, 3)])
def test_order_from_a_cold_start(order: int, corrector: int | None, expected: int) -> None:
    solver = ERSDE(order, "ode", corrector)
    measured = slope([cold_start_error(solver, n) for n in (64, 128, 256, 512)])
    assert measured == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(("order", "expected"), [(1, 1), (2, 2), (3, 2), (4, 2)])
def test_weak_order(weak_order, order: int, expected: int) -> None:
    assert weak_order(ERSDE(order, "sde")) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_strong_order(order: int) -> None:
    """Runs of all step sizes share one path: their error's root mean square over paths, by the path's basis vectors."""
    fine = 2048
    lams = grids.log_uniform(fine, 0.05, 5, zero=False)
    start = (lams[0] ** 2 + STD**2).sqrt() * torch.eye(fine + 1, dtype=torch.float64)[-1]
    solver = ERSDE(order, "sde")
    path = solver.tableau(lams)

    class Path:
        """Step i's noise, as coefficients in that of the fine steps it holds."""

        def __init__(self, n: int, b: Tensor):
            self.size, self.b = fine // n, b

        def step(self, i: int) -> Tensor:
            total = torch.zeros(fine + 1, dtype=torch.float64)
            for k in range(i * self.size, (i + 1) * self.size):
                total *= path.r[k]
                total[k] = path.b[k]
            return total / self.b[i]

    def run(n: int) -> Tensor:
        tableau = solver.tableau(lams[:: fine // n])
        return sample(one_gaussian, tableau, start, noise=Path(n, tableau.b))

    exact = run(fine)
    assert slope([(run(n) - exact).norm().item() for n in (32, 64, 128)]) == pytest.approx(1, abs=0.15)


def test_published_order_3_has_order_2_and_ends_at_slope_1(local_order) -> None:
    """A negative control of the orders above: what its exact coefficients would be good for, the Riemann sum spoils."""
    published, exact = ERSDE(3, "ode", paper=True), ERSDE(3, "ode")
    coarse, fine = (8, 16, 32), (512, 1024, 2048)
    assert slope([cold_start_error(published, n) for n in coarse]) == pytest.approx(1.9, abs=0.3)
    assert slope([cold_start_error(published, n) for n in fine]) == pytest.approx(1, abs=0.2)
    assert local_order(published) < 1.6
    assert cold_start_error(published, 512) > 50 * cold_start_error(exact, 512)


# Accuracy, as documented: see `default` and the goals of tools/bench_accuracy.py.


@pytest.mark.parametrize(("nfe", "goal"), [(10, 0.45), (20, 0.25), (50, 0.15)])
def test_beats_the_published_order_3(nfe: int, goal: float) -> None:
    lams = grids.edm(nfe)
    ours = w2_error(Gaussian.spectrum(), ERSDE(3, corrector=3).tableau(lams))
    assert ours < goal * w2_error(Gaussian.spectrum(), ERSDE(3, paper=True).tableau(lams))


# The ODE


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["ode", power(1), eta("er_sde_5", 0), window(0, 0.1, 1)])
def test_ode_has_no_noise(order: int, name) -> None:
    tableau = ERSDE(order, name, corrector=order).tableau(grids.edm(20))
    assert torch.equal(tableau.b, torch.zeros_like(tableau.b))
    start = 80 * SeededNoise([1], (3,)).initial()
    one, other = (sample(MIXTURE, tableau, start, noise=SeededNoise([seed], (3,))) for seed in (1, 2))
    assert torch.equal(one, other)
    assert one.isfinite().all()


def test_little_noise_is_not_lost_to_cancellation() -> None:
    lams = grids.edm(6, zero=False)
    b = ERSDE(1, eta("sde", 1e-14)).tableau(lams).b
    torch.testing.assert_close(b, lams[1:] * (2e-14 * (lams[:-1] / lams[1:]).log()).sqrt(), rtol=1e-9, atol=0)


# One problem in two coordinates


@pytest.mark.parametrize("solver", [ERSDE(), ERSDE(2, "sde", 2, 0.5), ERSDE(3, paper=True)])
def test_vp_is_ve(solver: ERSDE) -> None:
    """A denoiser of x = alpha y that predicts eps, and its twin of y that predicts x0."""

    def vp(y: Tensor, lam: Tensor) -> Tensor:
        alpha, sigma = (1 + lam**2) ** -0.5, lam * (1 + lam**2) ** -0.5
        x = alpha * y
        eps = (x - alpha * MIXTURE(x / alpha, sigma / alpha)) / sigma
        return (x - sigma * eps) / alpha

    tableau = solver.tableau(grids.vp_discrete(15))
    noise = SeededNoise(range(8), (3,), dtype=torch.float64)
    y = tableau.lams[0] * noise.initial()
    torch.testing.assert_close(
        sample(vp, tableau, y, noise=noise), sample(MIXTURE, tableau, y, noise=noise), rtol=0, atol=1e-12
    )


# Options


def test_log_nodes_are_unstable_with_noise() -> None:
    lams = grids.edm(10)
    with pytest.raises(ValueError, match="log nodes above order 2 are unstable"):
        ERSDE(3, "sde", nodes="log").tableau(lams)
    for stable in (ERSDE(2, "sde", nodes="log"), ERSDE(4, "ode", nodes="log"), ERSDE(3, "sde", nodes=1e-9)):
        stable.tableau(lams)

    def worst_ratio(solver: ERSDE) -> float:
        data, tableau = Gaussian.spectrum(), solver.tableau(lams)
        start = data.marginal_std(lams[0])
        _, std = output_law(lambda y, noise: sample(data, tableau, y, noise=noise), data.mean, start, 10)
        return (std / data.std).max().item()

    # Nodes asinh(lam / 1e-9) are log nodes in all but name.
    assert worst_ratio(ERSDE(4, "er_sde_3", nodes=1e-9)) > 4
    assert worst_ratio(ERSDE(4, "er_sde_3")) < 1.2


def test_asinh_nodes_lie_between() -> None:
    lams = grids.edm(8)
    for near, name in ((1e-7, "log"), (1e6, "lam")):
        asinh, limit = (ERSDE(2, "er_sde_5", corrector=2, nodes=nodes).tableau(lams) for nodes in (near, name))
        torch.testing.assert_close(asinh.c, limit.c, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(asinh.corrector, limit.corrector, rtol=1e-6, atol=1e-6)


def test_relative_nodes_know_no_scale() -> None:
    solver, lams = ERSDE(3, "sde", corrector=3, nodes=2.0, relative=True), grids.edm(8)
    small, large = solver.tableau(lams), solver.tableau(50 * lams)
    torch.testing.assert_close(small.c, large.c, rtol=0, atol=1e-12)
    torch.testing.assert_close(small.corrector, large.corrector, rtol=0, atol=1e-12)
    middle = 2 * (lams[3] * lams[4]).sqrt()  # the s of step 3
    torch.testing.assert_close(small.c[3], ERSDE(3, "sde", nodes=float(middle)).tableau(lams).c[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"corrector": 3}, {"nodes": "log"}, {"nodes": 0.5, "relative": True}])
def test_paper_ignores_corrector_and_nodes(options) -> None:
    lams = grids.edm(6)
    plain, same = ERSDE(3, paper=True).tableau(lams), ERSDE(3, paper=True, **options).tableau(lams)
    assert same.corrector is None
    for field in "rcb":
        assert torch.equal(getattr(plain, field), getattr(same, field))


@pytest.mark.parametrize(
    "options",
    [
        {"order": 0},
        {"order": 2.0},
        {"order": True},
        {"corrector": 0},
        {"corrector": "2"},
        {"nodes": "sigma"},
        {"nodes": 0},
        {"nodes": -1.0},
        {"nodes": math.inf},
        {"nodes": True},
        {"relative": True},
        {"nodes": "log", "relative": True},
        {"noise_scale": "er_sde_6"},
        {"order": 4, "paper": True},
    ],
)
def test_refuses_nonsense(options) -> None:
    with pytest.raises(ValueError):
        ERSDE(**options)


def test_a_table_made_under_inference_mode_is_the_same() -> None:
    with torch.inference_mode():
        tableau = ERSDE(corrector=3).tableau(grids.edm(7))
    for got, expected in zip(tableau[:5], ERSDE(corrector=3).tableau(grids.edm(7))[:5], strict=True):
        assert torch.equal(got, expected)
