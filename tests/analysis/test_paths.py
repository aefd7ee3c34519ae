import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from ersde_lit.analysis.paths import (
    Start,
    calls_of,
    mixture_starts,
    path_errors,
    refine,
    spread_mixture,
)
from ersde_lit.analysis.steps import accumulated_w2, one_step_w2
from ersde_lit.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    DPMSolverPP,
    NFECounter,
    SASolver,
    SavedTables,
    SDEDPMSolverPP,
    SeededNoise,
    UniPC,
    grids,
    sample,
)
from ersde_lit.solvers.oracles import Gaussian

EDM = grids.edm(6)
STOCHASTIC = {"er_sde": ERSDE(3, corrector=3), "sde": SDEDPMSolverPP(), "sa": SASolver(), "ddim": DDIM(0.4)}
SOLVERS = {"ode": ERSDE(3, "ode"), "unipc": UniPC(), "deis": DEIS(), **STOCHASTIC}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian_start(data: Gaussian, lam: float, rows: int) -> Start:
    """Exact states whose sample mean and standard deviation are those of the law."""
    noise = SeededNoise(range(rows), data.mean.shape, dtype=torch.float64)
    z = noise.initial()
    z = (z - z.mean(0)) / z.std(0, correction=0)
    return Start(data.mean + data.marginal_std(tensor(lam)) * z, noise)


class TestAgainstTheExact:
    @pytest.mark.parametrize("solver", [ERSDE(3, "ode"), DPMSolverPP(), UniPC(), DEIS()], ids=str)
    def test_without_noise(self, solver) -> None:
        data = Gaussian(tensor(0.3, -0.2, 0.0), tensor(1.0, 0.2, 0.05))
        errors = path_errors(data, {"it": solver}, EDM, [gaussian_start(data, 80, 50)], substeps=64)["it"]
        assert errors.one_step[-1].isnan()
        exact = one_step_w2(data, solver, EDM)[:-1] / math.sqrt(3)
        torch.testing.assert_close(errors.one_step[:-1], exact, rtol=2e-3, atol=1e-6)

    @pytest.mark.parametrize("solver", [UniPC(), DEIS()], ids=str)
    def test_of_a_table_that_tells_other_levels(self, solver) -> None:
        data = Gaussian(tensor(0.3, -0.2, 0.0), tensor(1.0, 0.2, 0.05))
        table = solver.tableau(EDM)._replace(calls=EDM[:-1] * tensor(0.9, 1.05, 0.95, 1.02, 0.97, 0.9))
        tables = SavedTables({6: table})
        counted = NFECounter(data)
        errors = path_errors(counted, {"it": tables}, EDM, [gaussian_start(data, 80, 50)], substeps=64)["it"]
        for found, exact in (
            (errors.one_step, one_step_w2(data, tables, EDM)),
            (errors.accumulated, accumulated_w2(data, table)),
        ):
            torch.testing.assert_close(found[:-1], exact[:-1] / math.sqrt(3), rtol=2e-3, atol=1e-6)
        corrected = 0 if table.corrector is None else 5
        assert counted.nfe == 5 * 64 + 5 + 6 + corrected  # reference, x0 as the table asks for it, its run

    def test_with_noise(self) -> None:
        """One step of the reverse SDE, p = 2, from 2 to 0.5, with the same Brownian path: by integrals over its noise.

        The exact step answers to the noise at l by ``(s^2 + l_t^2) / (s^2 + l^2)``, the solver's by ``l_t^2 / l^2``.
        """
        s, start, end = 0.6, 2.0, 0.5
        lams = tensor(start, end)

        def kernel(lam: float) -> float:
            return (s**2 + end**2) / (s**2 + lam**2) - end**2 / lam**2

        noise = quad(lambda lam: kernel(lam) ** 2 * 2 * lam, end, start)[0]
        table = DDIM(1.0).tableau(lams)
        a = s**2 / (s**2 + start**2)
        gain = float(table.r[0] + table.c[0, 0] * a) - (s**2 + end**2) / (s**2 + start**2)
        expected = math.sqrt(gain**2 * (s**2 + start**2) + noise)
        data = Gaussian(tensor(0.4), tensor(s))
        errors = path_errors(data, {"it": DDIM(1.0)}, lams, [gaussian_start(data, start, 40_000)], substeps=64)["it"]
        assert errors.one_step[0].item() == pytest.approx(expected, rel=0.02)
        assert errors.accumulated[0].item() == errors.one_step[0].item()

    def test_noise_of_the_substeps_adds_up_to_that_of_the_step(self) -> None:
        """Where x0 is constant every solver is exact, along the path too."""
        point = Gaussian(tensor(0.3, -2.0), tensor(0.0, 0.0))
        errors = path_errors(point, SOLVERS, EDM, [gaussian_start(point, 80, 4)], substeps=5)
        for error in errors.values():
            assert error.one_step[:-1].max() < 1e-10
            assert error.accumulated[:-1].max() < 1e-10

    def test_noise_too_small_to_have_a_reference_of_its_own(self) -> None:
        point = Gaussian(tensor(0.3), tensor(0.0))
        tiny = DDIM().tableau(EDM)
        tiny = SavedTables({len(EDM) - 1: tiny._replace(b=torch.where(EDM[1:] > 0, 1e-9, 0.0).double())})
        errors = path_errors(point, {"it": tiny}, EDM, [gaussian_start(point, 80, 4)], substeps=2)["it"]
        assert errors.accumulated[:-1].max() < 1e-8

    def test_a_reference_is_a_solver_with_many_steps(self) -> None:
        """A run is compared with where it would have gone: DDIM's states and the flow of the ODE."""
        data = Gaussian(tensor(0.0), tensor(0.3))
        (start,) = [gaussian_start(data, 80, 20)]
        states = []
        sample(data, DDIM().tableau(EDM), start.y, callback=lambda i, lam, y, x0: states.append(y))
        flow = [(lam**2 + 0.09).sqrt() / (EDM[0] ** 2 + 0.09).sqrt() * start.y for lam in EDM[1:-1]]
        expected = torch.stack([(y - f).square().mean().sqrt() for y, f in zip(states[1:], flow, strict=True)])
        errors = path_errors(data, {"it": DDIM()}, EDM, [start], substeps=64)["it"]
        torch.testing.assert_close(errors.accumulated[:-1], expected, rtol=1e-3, atol=0)


class TestMixture:
    def test_the_reference_has_converged(self) -> None:
        data = spread_mixture()
        coarse, fine = (
            path_errors(data, {"ode": DDIM()}, EDM, mixture_starts(data, EDM, range(40), 40), n)["ode"].one_step[:-1]
            for n in (16, 128)
        )
        torch.testing.assert_close(coarse, fine, rtol=2e-3, atol=0)

    def test_steps_twice_as_fine_err_less(self) -> None:
        data = spread_mixture()
        worst = [
            path_errors(data, SOLVERS, lams, mixture_starts(data, lams, range(40), 40), 8)
            for lams in (grids.edm(20), grids.edm(40))
        ]
        for name in SOLVERS:
            coarse, fine = (errors[name].one_step[:-1].max() for errors in worst)
            assert fine < 0.8 * coarse

    def test_batches_are_one(self) -> None:
        data = spread_mixture()
        starts = list(mixture_starts(data, EDM, range(10), 10))
        (whole,) = starts
        halves = [
            Start(whole.y[:7], SeededNoise(range(7), (8,), dtype=torch.float64)),
            Start(whole.y[7:], SeededNoise(range(7, 10), (8,), dtype=torch.float64)),
        ]
        for name, error in path_errors(data, STOCHASTIC, EDM, starts, 4).items():
            again = path_errors(data, STOCHASTIC, EDM, halves, 4)[name]
            torch.testing.assert_close(error.one_step, again.one_step, rtol=1e-12, atol=0, equal_nan=True)
            torch.testing.assert_close(error.accumulated, again.accumulated, rtol=1e-12, atol=0, equal_nan=True)


class TestReference:
    def test_is_shared_by_solvers_of_the_same_equation(self) -> None:
        data, asked = NFECounter(spread_mixture()), []
        solvers = {"a": DPMSolverPP(), "b": ERSDE(3, "ode"), "c": DEIS(), "d": DDIM(1.0), "e": ERSDE(2, "sde")}
        path_errors(data, solvers, EDM, mixture_starts(data, EDM, range(3), 3), 4, lambda: asked.append(1))
        assert len(asked) == calls_of(solvers, EDM, 4) == 2 * 5 * 4
        assert data.nfe == len(asked) + 5 * 6  # and a run of each solver

    def test_visits_the_grid(self) -> None:
        fine = refine(EDM, 3)
        assert len(fine.lams) == 5 * 3 + 1
        torch.testing.assert_close(fine.lams[fine.nodes], EDM[:-1], rtol=1e-15, atol=0)
        ratios = fine.lams[1:4] / fine.lams[:3]
        torch.testing.assert_close(ratios, ratios[:1].expand(3), rtol=1e-12, atol=0)

    def test_keeps_to_the_levels_of_a_discrete_model(self) -> None:
        levels = grids.vp_levels(50)
        lams = torch.cat([levels[[49, 30, 28, 10]], tensor(0)])
        fine = refine(lams, 8, levels)
        assert torch.isin(fine.lams, levels).all()
        assert (fine.lams.diff() < 0).all()
        assert fine.nodes == [0, 8, 10, 18]  # a single level lies between 30 and 28
        torch.testing.assert_close(fine.lams[fine.nodes], lams[:-1], rtol=0, atol=0)

    def test_goes_to_the_end_of_a_grid_without_0(self) -> None:
        data = spread_mixture()
        lams = grids.edm(5, zero=False)
        errors = path_errors(data, SOLVERS, lams, mixture_starts(data, lams, range(3), 3), 4)
        assert all(error.one_step.isfinite().all() and error.accumulated.isfinite().all() for error in errors.values())

    def test_labels_reach_the_denoiser(self) -> None:
        def denoiser(y: Tensor, lam: Tensor, labels: Tensor) -> Tensor:
            return labels.unsqueeze(1).expand_as(y).to(y)

        noise = SeededNoise(range(2), (3,), dtype=torch.float64)
        start = Start(80 * noise.initial(), noise, torch.tensor([1, 5]))
        errors = path_errors(denoiser, SOLVERS, EDM, [start], 3)
        assert all(error.one_step[:-1].max() < 1e-10 for error in errors.values())


def test_a_single_step_to_0_is_refused() -> None:
    with pytest.raises(ValueError, match="raise nfe"):
        path_errors(spread_mixture(), SOLVERS, grids.edm(1), [], 4)


def test_an_output_that_is_not_finite_is_named() -> None:
    starts = mixture_starts(spread_mixture(), EDM, range(2), 2)
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        path_errors(lambda y, lam: y * math.nan, SOLVERS, EDM, starts, 3)
