import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ersde_lit.solvers import check_lams, grids

ALL = {
    "edm": grids.edm,
    "edm, rho 3": partial(grids.edm, lam_min=0.01, lam_max=20, rho=3),
    "log_uniform": grids.log_uniform,
    "poly_exponential": partial(grids.poly_exponential, rho=2),
    "uniform_t": partial(grids.uniform_t, lam_of_t=lambda t: t / (1 - t), t_min=0.01, t_max=0.99),
    "vp_linear": grids.vp_linear,
    "vp_cosine": grids.vp_cosine,
    "vp_discrete": grids.vp_discrete,
    "iddpm": grids.iddpm,
}


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 990), zero=st.booleans())
def test_every_grid_keeps_the_contract(name: str, n: int, zero: bool) -> None:
    lams = ALL[name](n, zero=zero)
    assert lams.dtype == torch.float64
    assert lams.shape == (n + 1,)
    assert (lams.diff() < 0).all()
    assert (lams[-1] == 0) == zero


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [0, -1, 2.0, True, "3"])
def test_every_grid_refuses_nonsense(name: str, n) -> None:
    with pytest.raises(ValueError, match="number of calls must be an integer"):
        ALL[name](n)


@pytest.mark.parametrize("name", [name for name in ALL if name != "vp_discrete"])
def test_zero_is_the_end_by_default(name: str) -> None:
    assert ALL[name](5)[-1] == 0


def test_ends_are_exact() -> None:
    for grid in (grids.edm, grids.log_uniform, grids.poly_exponential):
        assert grid(1).tolist() == pytest.approx([80.0, 0.0], rel=1e-15)
        for lams in (grid(7)[:-1], grid(6, zero=False)):
            torch.testing.assert_close(lams[[0, -1]], torch.tensor([80.0, 0.002]).double(), rtol=1e-7, atol=0)
        assert grid(9, 0.01, 10.0)[0] == pytest.approx(10, rel=1e-15)


def test_steps_are_equal_in_their_variable() -> None:
    def equal(steps: Tensor) -> None:
        torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-9, atol=0)

    equal((grids.edm(9, rho=5)[:-1] ** 0.2).diff())
    equal(grids.log_uniform(9)[:-1].log().diff())
    equal(grids.uniform_t(9, lambda t: t / (1 - t), 0.1, 0.9, zero=False).reciprocal().add(1).reciprocal().diff())
    # The time of the linear VP process, out of ln(1 + lam^2) = 9.95 t^2 + 0.1 t.
    t = ((0.1**2 + 4 * 9.95 * grids.vp_linear(9)[:-1].square().log1p()).sqrt() - 0.1) / (2 * 9.95)
    equal(t.diff())
    assert t[[0, -1]].tolist() == pytest.approx([1, 1e-3])
    # And of the cosine one, whose alpha = 1 / sqrt(1 + lam^2).
    alpha = (1 + grids.vp_cosine(9)[:-1] ** 2).rsqrt()
    t = (alpha * math.cos(0.008 / 1.008 * math.pi / 2)).acos() * 2 / math.pi * 1.008 - 0.008
    equal(t.diff())
    assert t[[0, -1]].tolist() == pytest.approx([0.9946, 1e-3])


def test_poly_exponential_is_that_of_k_diffusion() -> None:
    for rho in (1.0, 0.5, 3.0):
        ramp = torch.linspace(1, 0, 12, dtype=torch.float64) ** rho
        expected = (ramp * (math.log(80) - math.log(0.002)) + math.log(0.002)).exp()
        torch.testing.assert_close(grids.poly_exponential(12, rho=rho)[:-1], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [1, 2, 18, 100, 992])
def test_iddpm_is_that_of_edm(n: int) -> None:
    """By the recursion of Karras et al. 2022, Table 1: beta clipped at 0.999."""
    alpha_bar = [math.sin(math.pi / 2 * j / 1000 / 1.008) ** 2 for j in range(1001)]
    u = [0.0]
    for j in range(1000, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], 0.001) - 1))
    u = [x for x in reversed(u) if 0.002 <= x <= 81]
    expected = [u[round((len(u) - 1) / max(n - 1, 1) * i)] for i in range(n)]
    torch.testing.assert_close(grids.iddpm(n)[:-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)


def test_discrete_levels() -> None:
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    levels = grids.vp_levels()
    torch.testing.assert_close(levels, ((1 - alpha_bar) / alpha_bar).sqrt(), rtol=1e-11, atol=0)
    assert grids.vp_discrete(5).tolist() == levels[[833, 666, 500, 333, 166, 0]].tolist()
    assert grids.vp_discrete(5, zero=True).tolist() == [*levels[[833, 666, 500, 333, 166]].tolist(), 0]
    assert grids.vp_discrete(3, levels=torch.arange(1.0, 5.0).double()).tolist() == [4, 3, 2, 1]


def test_more_calls_than_levels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1000 levels .* at most 999"):
        grids.vp_discrete(1000)
    with pytest.raises(ValueError, match="992 levels"):
        grids.iddpm(993)
    assert len(grids.iddpm(992).unique()) == 993


def test_a_list_of_ones_own() -> None:
    grid = grids.Fixed([10, 3, 1, 0])
    assert grid(3).tolist() == [10, 3, 1, 0]
    with pytest.raises(ValueError, match="4 lams makes 3 calls, not 5"):
        grid(5)
    for bad in ([1.0], [1.0, 2.0], [1.0, 1.0], [1.0, 0.0, 0.0], [-1.0, -2.0], [math.inf, 1.0], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="lams must"):
            grids.Fixed(bad)(len(bad) - 1)


@pytest.mark.parametrize(
    ("lams", "message"),
    [
        ([3.0, 2.0, 2.5, 0.0], "level 2 is 2.5 after 2"),
        ([-1.0, -2.0], "level 0 is -1"),
        ([2.0, 0.0, 0.0], "level 1 is 0 after 2"),
        ([2.0, -1.0], "level 1 is -1 after 2"),
        ([2.0, math.nan], "level 1 is nan"),
        ([[2.0, 1.0]], "not shape"),
        ([2.0], "at least two"),
    ],
)
def test_levels_out_of_order_are_named(lams, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_lams(torch.tensor(lams))


def test_check_keeps_what_is_right() -> None:
    assert torch.equal(check_lams(torch.tensor([2.0, 1.0])), torch.tensor([2.0, 1.0]).double())


def test_levels_may_be_part_of_a_graph() -> None:
    lams = torch.tensor([2.0, 1.0], requires_grad=True)
    assert torch.equal(check_lams(lams), torch.tensor([2.0, 1.0]).double())


@pytest.mark.parametrize("make", [partial(grids.edm, 5, 80.0, 0.002), partial(grids.vp_linear, 5, 1.0, 1e-3)])
def test_refuses_ranges_upside_down(make) -> None:
    with pytest.raises(ValueError, match="lams must"):
        make()


@pytest.mark.parametrize("bad", [0, -7, math.nan, math.inf, "7", None, True])
@pytest.mark.parametrize(
    ("grid", "name"),
    [
        *((grids.edm, name) for name in ("lam_min", "lam_max", "rho")),
        *((grids.log_uniform, name) for name in ("lam_min", "lam_max")),
        (grids.poly_exponential, "rho"),
        *((grids.vp_linear, name) for name in ("t_min", "t_max", "beta_min", "beta_max")),
        *((grids.vp_cosine, name) for name in ("t_min", "t_max", "s")),
    ],
)
def test_parameters_are_positive_numbers(grid, name: str, bad) -> None:
    with pytest.raises(ValueError, match=f"{name} of a grid must be a positive number"):
        grid(5, **{name: bad})


@pytest.mark.parametrize("t_max", [1, 1.5])
def test_cosine_time_ends_before_1(t_max: float) -> None:
    with pytest.raises(ValueError, match="t_max of vp_cosine must be below 1"):
        grids.vp_cosine(5, t_max=t_max)
