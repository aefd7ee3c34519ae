import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ersde_lit.denoisers import EDA, VE, VP, Cosine, Flow, Process, ScaledLinear

PROCESSES = [VE(), VP(), VP(0.2, 15.0), VP(steps=1000), ScaledLinear(), Cosine(), Cosine(offset=0.02), Flow(), EDA()]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_time_and_lam_are_inverse_and_rise_together(process: Process) -> None:
    low, high = process.t_range
    t = torch.linspace(low, high, 1000, dtype=torch.float64)
    lam = process.lam(t)
    assert (lam.diff() > 0).all()
    torch.testing.assert_close(process.t_of_lam(lam), t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.sigma(t) / process.alpha(t), lam)
    assert process.lam_range() == pytest.approx((lam[0].item(), lam[-1].item()))


@pytest.mark.parametrize("process", [VP(), VP(steps=1000), Cosine()], ids=str)
def test_vp_preserves_variance(process: Process) -> None:
    t = torch.linspace(*process.t_range, 50, dtype=torch.float64)
    torch.testing.assert_close(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t))


def test_vp_is_the_solution_of_its_own_equation() -> None:
    # d ln alpha / dt = -beta(t) / 2 (Song et al. 2021, eq. 11)
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(VP().alpha(t).log().sum(), t)
    torch.testing.assert_close(slope, -(0.1 + 19.9 * t.detach()) / 2)


def test_discrete_levels_are_those_of_ddpm() -> None:
    bar, levels = 1.0, []
    for k in range(1000):
        bar *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
        levels.append(math.sqrt((1 - bar) / bar))
    torch.testing.assert_close(VP(steps=1000).levels, torch.tensor(levels, dtype=torch.float64), rtol=1e-10, atol=0)


def test_cosine_levels_are_the_published_recursion() -> None:
    # Karras et al. 2022, table 1, iDDPM: M = 1000, C_1 = 0.001, C_2 = 0.008, u_M = 0
    def alpha_bar(j: int) -> float:
        return math.sin(math.pi / 2 * j / (1000 * 1.008)) ** 2

    u = [0.0] * 1001
    for j in range(1000, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), 0.001) - 1)
    torch.testing.assert_close(Cosine().levels, torch.tensor(u[999::-1], dtype=torch.float64), rtol=1e-8, atol=0)


@given(st.floats(0.005, 30_000.0))
def test_the_cosine_level_that_differs_least_is_found(lam: float) -> None:
    process = Cosine()
    found = process.lam(process.t_of_lam(torch.tensor(lam, dtype=torch.float64)))
    assert abs(found - lam) <= (process.levels - lam).abs().min() + 1e-12


@given(st.floats(0.011, 150.0))
def test_the_nearest_level_is_found(lam: float) -> None:
    process = VP(steps=1000)
    assert process.levels is not None
    found = process.lam(process.t_of_lam(torch.tensor(lam, dtype=torch.float64)))
    assert abs(math.log(found / lam)) <= (process.levels.log() - math.log(lam)).abs().min() + 1e-12


def test_flow_is_straight() -> None:
    t = torch.tensor([0.25, 0.5])
    torch.testing.assert_close(Flow().alpha(t), 1 - t)
    torch.testing.assert_close(Flow().sigma(t), t)


@pytest.mark.parametrize(
    "build",
    [
        lambda: VP(2, 1),
        lambda: VP(steps=10),
        lambda: VP(t_min=0),
        lambda: ScaledLinear(steps=None),
        lambda: VE(1, 0.5),
        lambda: EDA(2, 1),
        lambda: EDA(t_min=0),
        lambda: Cosine(steps=1),
        lambda: Cosine(offset=-0.1),
        lambda: Cosine(max_beta=1),
    ],
)
def test_impossible_schedules_are_refused(build) -> None:
    with pytest.raises(ValueError, match="needs"):
        build()


@pytest.mark.parametrize("process", [EDA(), EDA(0.2, 15.0), EDA(beta_max=80.0, t_min=0.1)], ids=str)
def test_a_degradations_strength_is_vps_sigma_over_its_last(process: EDA) -> None:
    vp, t = VP(process.beta_min, process.beta_max), torch.linspace(0.001, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(process.lam(t), vp.sigma(t) / vp.sigma(t[-1:]), rtol=1e-12, atol=0)
    for dtype in (torch.float64, torch.float32):
        one = torch.ones(1, dtype=dtype)
        torch.testing.assert_close(process.lam(one), one)
        torch.testing.assert_close(process.t_of_lam(one), one)
        torch.testing.assert_close(process.t_of_lam(one * (1 + 1e-6)), one)  # rounding may exceed 1
    assert process.lam_range() == pytest.approx((process.lam(torch.tensor(process.t_min).double()).item(), 1.0))
    torch.testing.assert_close(process.alpha(t), torch.ones_like(t))


def test_scaled_linear_is_that_of_latent_diffusion() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = torch.from_numpy((1 - betas).cumprod())
    levels = ScaledLinear(0.85, 12.0).levels
    torch.testing.assert_close(levels, ((1 - alpha_bar) / alpha_bar).sqrt(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("t_min", [1e-3, 1e-5])
def test_where_vp_ends_for_samplers(t_min: float) -> None:
    low, high = VP(t_min=t_min).lam_range()
    assert low == pytest.approx(math.sqrt(math.expm1(0.1 * t_min + 9.95 * t_min**2)), rel=1e-12)
    assert high == VP().lam_range()[1]
    assert VP(steps=1000, t_min=t_min).t_range == (0, 1)


@pytest.mark.parametrize(
    "build", [lambda: VP(steps=10**12), lambda: Cosine(10**12), lambda: ScaledLinear(steps=10**12)]
)
def test_a_file_cannot_ask_for_endless_levels(build) -> None:
    with pytest.raises(ValueError, match="at most 100,000 steps, got 1,000,000,000,000"):
        build()
