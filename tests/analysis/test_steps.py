import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from ersde_lit.analysis.steps import (
    accumulated_w2,
    denoiser_error_left,
    gaussian_kernel,
    injected_noise,
    one_step_w2,
    step_scales,
)
from ersde_lit.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    DPMSolverPP,
    SASolver,
    SavedTables,
    SDEDPMSolverPP,
    UniPC,
    grids,
    noise_scale,
    power,
)
from ersde_lit.solvers.oracles import Gaussian, w2_error

PHIS = ["ode", "sde", "er_sde_1", "er_sde_2", "er_sde_3", "er_sde_4", "er_sde_5"]
SOLVERS = [
    ERSDE(1, "ode"),
    ERSDE(3),
    ERSDE(3, "sde", corrector=3),
    ERSDE(3, paper=True),
    DDIM(0.4),
    DPMSolverPP(),
    SDEDPMSolverPP(),
    UniPC(),
    SASolver(),
    DEIS(),
    IPNDM(),
]
DATA = Gaussian.spectrum()
EDM = grids.edm(10)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("phi", PHIS)
def test_the_euler_coefficient_is_what_a_step_of_order_1_gives_to_x0(phi: str) -> None:
    """The table's c is an integral of kappa; the coefficient is phi at the ends."""
    coefficients = 1 - ERSDE(1, phi).tableau(EDM).r
    close(coefficients, ERSDE(1, phi).tableau(EDM).c.sum(1))
    if phi != "er_sde_4":
        assert (coefficients >= 1 - ERSDE(1, "ode").tableau(EDM).r - 1e-12).all()


def test_noise_is_what_the_table_injects() -> None:
    assert not injected_noise(ERSDE(3, "ode").tableau(EDM))[:-1].any()
    ratio = EDM[1:-1] / EDM[:-2]
    close(injected_noise(ERSDE(2, "sde").tableau(EDM))[:-1], (1 - ratio**2).sqrt())
    close(injected_noise(DDIM(0.4).tableau(EDM))[:-1], 0.4 * (1 - ratio**2).sqrt())
    assert injected_noise(ERSDE().tableau(EDM))[-1].isnan()


class TestKernel:
    @pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
    def test_of_powers_in_closed_form(self, p: float) -> None:
        gain, noise = gaussian_kernel(power(p), tensor(0.3, 0.0), 2.0, 0.1)
        variance = tensor(0.3**2 + 0.1**2, 0.1**2)
        ratio = variance / tensor(0.3**2 + 4, 4)
        close(gain, ratio ** (p / 2))
        close(noise, (variance * (1 - ratio ** (p - 1))).sqrt())

    @pytest.mark.parametrize("phi", ["er_sde_1", "er_sde_4", "er_sde_5"])
    def test_is_the_solution_of_the_reverse_sde(self, phi: str) -> None:
        """Its gain and covariance as ordinary differential equations in lam, solved by another library."""
        kappa, s = noise_scale(phi).kappa, 0.3

        def slopes(lam: float, state: list[float]) -> list[float]:
            k = float(kappa(tensor(lam)))
            drift = k * lam / (s**2 + lam**2)
            return [drift * state[0], 2 * drift * state[1] - 2 * lam * (k - 1)]

        solution = solve_ivp(slopes, (5.0, 0.05), [1.0, 0.0], rtol=1e-11, atol=1e-13).y[:, -1]
        gain, noise = gaussian_kernel(noise_scale(phi), tensor(s), 5.0, 0.05)
        assert (gain.item(), noise.item() ** 2) == pytest.approx((solution[0], solution[1]), rel=1e-7)

    @settings(deadline=None)
    @given(
        st.sampled_from(PHIS),
        st.floats(1e-6, 2) | st.just(0),
        st.floats(0.02, 80),
        st.floats(0.05, 1),
        st.floats(0.05, 1) | st.just(0),
    )
    def test_two_steps_are_one(self, phi: str, std: float, start: float, first: float, second: float) -> None:
        scale, data = noise_scale(phi), tensor(std)
        middle, end = start * first * 0.99, start * first * second * 0.98
        gain, noise = gaussian_kernel(scale, data, start, end)
        gain_1, noise_1 = gaussian_kernel(scale, data, start, middle)
        gain_2, noise_2 = gaussian_kernel(scale, data, middle, end)
        close(gain, gain_1 * gain_2)
        close(noise**2, noise_1**2 * gain_2**2 + noise_2**2)
        close(gain**2 * (data**2 + start**2) + noise**2, data**2 + end**2)  # the law at both ends


class TestScales:
    def test_are_read_from_the_noise_of_a_table(self) -> None:
        lams = grids.edm(6)
        at = tensor(1.0, 0.1)
        for solver, p in ((DPMSolverPP(), 1), (DEIS(), 1), (DDIM(1.0), 2), (SDEDPMSolverPP(), 2)):
            for scale in step_scales(solver, solver.tableau(lams)):
                close(scale.kappa(at), torch.full_like(at, p))
        assert {s.name for s in step_scales(ERSDE(2, "er_sde_3", paper=True), ERSDE(2).tableau(lams))} == {"er_sde_3"}

    def test_that_change_on_the_way(self) -> None:
        solver = SASolver(tau=1.0, window=(0.5, 30.0))
        lams = tensor(80, 20, 2, 0.3, 0.01)
        powers = [float(s.kappa(tensor(1.0))) for s in step_scales(solver, solver.tableau(lams))]
        assert powers == pytest.approx([1, 2, 2, 1])

    def test_inject_the_noise_of_the_table(self) -> None:
        table = DDIM(0.4).tableau(EDM)
        for i, scale in enumerate(step_scales(DDIM(0.4), table)[:-1]):
            close(ERSDE(1, scale).tableau(table.lams[i : i + 2]).b, table.b[i : i + 1])


class TestOneStep:
    @pytest.mark.parametrize(
        ("phi", "order", "slope"),
        [("ode", 1, 2), ("ode", 2, 3), ("ode", 3, 4), ("sde", 1, 2), ("sde", 2, 3), ("er_sde_5", 2, 3)],
    )
    def test_falls_with_the_power_of_h_above_the_order(self, phi: str, order: int, slope: int) -> None:
        """Without noise for every order; with it the law has order 2 at most. Steps equal in ln lam, the one at 0.5."""
        data = Gaussian(tensor(0.1), tensor(0.25))
        h, errors = [], []
        for n in (32, 64, 128, 256):
            lams = 5 * (0.05 / 5) ** (torch.arange(n + 1, dtype=torch.float64) / n)
            h.append(math.log(100) / n)
            errors.append(float(one_step_w2(data, ERSDE(order, phi), lams)[n // 2]))
        x, y = tensor(*h).log(), tensor(*errors).log()
        x, y = x - x.mean(), y - y.mean()
        assert (x @ y / (x @ x)).item() == pytest.approx(slope, abs=0.15)

    @pytest.mark.parametrize("solver", SOLVERS, ids=str)
    def test_vanishes_where_x0_is_constant(self, solver) -> None:
        point = Gaussian(tensor(0.3, -2.0), tensor(0.0, 0.0))
        assert one_step_w2(point, solver, EDM).max() < (2e-3 if getattr(solver, "paper", False) else 1e-11)
        if not getattr(solver, "paper", False):  # which leaves noise of variance below 1e-6 out
            assert accumulated_w2(point, solver.tableau(EDM)).max() < 1e-11

    @pytest.mark.parametrize("solver", [UniPC(), ERSDE(3, "ode"), ERSDE(2, "ode", corrector=3), DEIS()], ids=str)
    def test_without_noise_is_the_distance_to_the_flow(self, solver) -> None:
        table = solver.tableau(EDM)
        flow = (EDM**2 + 0.3**2).sqrt()
        x0 = 0.3**2 / flow
        h = x0 if table.history == "x0" else torch.cat([(flow - x0)[:-1] / EDM[:-1], tensor(math.nan)])
        expected = []
        for i in range(10):
            past = h[: i + 1].flip(0)
            end = table.r[i] * flow[i] + sum(w * v for w, v in zip(table.c[i], past, strict=False))
            if table.corrector is not None and table.corrector[i].any():
                new = 0.3**2 / flow[i + 1] ** 2 * end
                past = torch.cat([new[None], past])
                end = table.r[i] * flow[i] + sum(w * v for w, v in zip(table.corrector[i], past, strict=False))
            expected.append(abs(end - flow[i + 1]))
        close(one_step_w2(Gaussian(tensor(0.5), tensor(0.3)), solver, EDM), torch.stack(expected))

    def test_of_ancestral_sampling_by_hand(self) -> None:
        """Order 1 needs no history: from the law of y alone."""
        table = DDIM(1.0).tableau(EDM)
        gain = table.r + table.c[:, 0] * 0.3**2 / (0.3**2 + EDM[:-1] ** 2)
        std = (gain**2 * (0.3**2 + EDM[:-1] ** 2) + table.b**2).sqrt()
        data = Gaussian(tensor(0.5), tensor(0.3))
        close(one_step_w2(data, DDIM(1.0), EDM), (std - (0.3**2 + EDM[1:] ** 2).sqrt()).abs())

    def test_begins_with_a_history_as_the_sde_makes_it(self) -> None:
        """Order 2 on the second step: the law of y_1 and y_0 together, by its covariance."""
        s, table = 0.3, ERSDE(2, "sde").tableau(EDM)
        v = s**2 + EDM**2
        a = s**2 / v
        first, second = table.r[1] + table.c[1, 0] * a[1], table.c[1, 1] * a[0]  # weights of y_1 and y_0
        covariance = v[1] / v[0] * v[0]  # gain (v_1 / v_0)^(2 / 2)
        std = (first**2 * v[1] + second**2 * v[0] + 2 * first * second * covariance + table.b[1] ** 2).sqrt()
        error = one_step_w2(Gaussian(tensor(0.5), tensor(s)), ERSDE(2, "sde"), EDM)[1]
        close(error, (std - v[2].sqrt()).abs())


class TestRun:
    @pytest.mark.parametrize("solver", SOLVERS, ids=str)
    def test_ends_with_the_known_error(self, solver) -> None:
        table = solver.tableau(EDM)
        errors = accumulated_w2(DATA, table)
        assert errors[-1].item() == pytest.approx(w2_error(DATA, table), rel=1e-12)
        if table.corrector is None:  # the start is exact
            assert errors[0].item() == pytest.approx(one_step_w2(DATA, solver, EDM)[0].item(), rel=1e-9)

    def test_is_as_far_as_a_run_that_stops_there(self) -> None:
        table = ERSDE(2, "sde").tableau(EDM)
        cut = table._replace(lams=EDM[:5], r=table.r[:4], c=table.c[:4], b=table.b[:4])
        assert accumulated_w2(DATA, table)[3].item() == pytest.approx(w2_error(DATA, cut), rel=1e-12)


class TestDenoiserError:
    def test_by_the_product_of_gains(self) -> None:
        """Order 1: c of the call, then what each later step keeps of y."""
        table = DDIM(1.0).tableau(EDM)
        a = DATA.std**2 / (DATA.std**2 + EDM[:-1, None] ** 2)
        gains = table.r[:, None] + table.c * a
        left = torch.stack([table.c[i] * gains[i + 1 :].prod(0) for i in range(10)])
        close(denoiser_error_left(DATA, table), left.square().mean(1).sqrt())

    @pytest.mark.parametrize("solver", SOLVERS, ids=str)
    def test_of_the_last_call_stays(self, solver) -> None:
        assert denoiser_error_left(DATA, solver.tableau(EDM))[-1].item() == pytest.approx(1)

    def test_noise_forgets_what_happened_early(self) -> None:
        lams = grids.edm(50)
        ode, sde = (denoiser_error_left(DATA, ERSDE(3, phi).tableau(lams)) for phi in ("ode", "sde"))
        assert (sde[:20] < 0.5 * ode[:20]).all()
        assert (sde[-10:-1] > ode[-10:-1]).all()


def test_the_ode_loses_less_a_step_and_the_sde_more() -> None:
    """The paper's reading of the coefficient, on exact data: a larger one goes with a larger error of each step."""
    steps = [one_step_w2(DATA, ERSDE(1, phi), EDM)[:-1] for phi in ("ode", "er_sde_5", "sde")]
    assert (steps[0] < steps[1]).all()
    assert (steps[1] < steps[2]).all()


class Told:
    """Data whose denoiser takes each level for another: what a table with calls makes of the data themselves."""

    def __init__(self, data: Gaussian, told: dict[float, Tensor]) -> None:
        self.data, self.told = data, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        return self.data(y, self.told[float(lam)])


@pytest.mark.parametrize("solver", [UniPC(3), ERSDE(2, "sde", corrector=3), DEIS()], ids=str)
def test_calls_that_are_told_are_another_denoiser(solver) -> None:
    plain = solver.tableau(EDM)
    table = plain._replace(calls=EDM[:-1] * torch.linspace(0.8, 1.1, 10, dtype=torch.float64))
    told = Told(DATA, dict(zip(EDM.tolist(), table.told, strict=False)))
    for quantity in (accumulated_w2, denoiser_error_left):
        close(quantity(DATA, table), quantity(told, plain))
        assert not torch.allclose(quantity(DATA, table), quantity(DATA, plain), rtol=1e-3)
    alone = one_step_w2(DATA, SavedTables({10: table}), EDM)
    close(alone, one_step_w2(told, SavedTables({10: plain}), EDM))
    assert not torch.allclose(alone, one_step_w2(DATA, solver, EDM), rtol=1e-3)
