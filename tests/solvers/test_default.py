import math
import re
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from ersde_lit.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    DPMSolverPP,
    NFECounter,
    SDEDPMSolverPP,
    SeededNoise,
    Solver,
    TableSampler,
    UniPC,
    default,
    grids,
    noisy,
    registry,
    sample,
)
from ersde_lit.solvers.oracles import Gaussian, output_law, w2, w2_error
from ersde_lit.solvers.tableau import with_mean

NOISE = SeededNoise([1, 2], (64,), dtype=torch.float64)


def test_default() -> None:
    above_5 = "window:0.6:5:10000:1"
    chosen: list[tuple[int, str, float, float, float, float]] = [
        (1, "ode", 1.0, 2.5, 20, 18.75), (3, "ode", 1.0, 0.0926, 20, 16.25), (5, "ode", 1.2, 0.02, 45, 13.75),
        (6, above_5, 1.4, 0.0116, 45, 12.5), (8, above_5, 1.65, 0.0049, 51.2, 10), (10, above_5, 1.78, 0.0025, 80, 9),
        (20, above_5, 1.73, 0.002, 80, 9), (50, above_5, 1.7, 0.002, 80, 9),
    ]  # fmt: skip
    for nfe, noise, nodes, lam_min, lam_max, rho in chosen:
        sampler = default(nfe)
        assert sampler.solver == ERSDE(2, noise, nodes=nodes, relative=True)
        torch.testing.assert_close(sampler.grid(nfe), grids.edm(nfe, lam_min=lam_min, lam_max=lam_max, rho=rho))
        assert sampler.add_mean


# As image data are: means far from 0, std from well above 1 (at 32x32) to below 0.1.
IMAGES = Gaussian(
    torch.cat([torch.tensor([5.0]), torch.zeros(63)]).double(), 10 * torch.arange(1, 65, dtype=torch.float64) ** -1.2
)


def error_from_pure_noise(data: Gaussian, sampler: TableSampler, nfe: int) -> float:
    """W2 as in use: a run starts from N(0, lam_max^2), not from the data at lam_max."""
    zero = torch.zeros_like(data.mean)
    law = output_law(lambda _, noise: sampler(data, noise, nfe), zero, zero, nfe)
    return w2(*law, data.mean, data.std)


def test_more_calls_of_the_default_are_better() -> None:
    nfes, spectrum = (5, 6, 8, 10, 15, 20, 30, 50), Gaussian.spectrum()
    from_exact = [w2_error(spectrum, default(nfe).solver.tableau(default(nfe).grid(nfe))) for nfe in nfes]
    for errors in (
        from_exact,
        [error_from_pure_noise(spectrum, default(nfe), nfe) for nfe in nfes],
        [error_from_pure_noise(IMAGES, default(nfe), nfe) for nfe in nfes],
    ):
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "rival",
    [DPMSolverPP(), SDEDPMSolverPP(), UniPC(), UniPC(order=3), DEIS(), IPNDM(), ERSDE(3, paper=True)],
    ids=str,
)
def test_no_rival_on_one_grid_is_ahead_of_the_default_over_both_laws(rival: Solver) -> None:
    """In the geometric mean; errors below 0.002 count as 0.002."""
    for grid in (grids.edm, grids.log_uniform, partial(grids.edm, rho=12.0), partial(grids.log_uniform, lam_max=20.0)):
        for nfe in (5, 6, 8, 10, 15, 20, 30):
            ours, theirs = (
                math.prod(max(error_from_pure_noise(data, s, nfe), 0.002) for data in (Gaussian.spectrum(), IMAGES))
                for s in (default(nfe), TableSampler(rival, grid))
            )
            assert ours < theirs, (rival, grid, nfe)


@pytest.mark.parametrize("nfe", [4, 20])
@pytest.mark.parametrize(("name", "choice"), [("default", default), ("noisy", noisy)])
def test_each_can_be_named_as_a_sampler(name: str, choice, nfe: int) -> None:
    denoiser = NFECounter(IMAGES)
    assert torch.equal(registry.sampler(name)(denoiser, NOISE, nfe), choice(nfe)(IMAGES, NOISE, nfe))
    assert denoiser.nfe == nfe
    other = TableSampler(choice(nfe).solver, grids.log_uniform, add_mean=True)
    assert torch.equal(registry.sampler(name, grids.log_uniform)(IMAGES, NOISE, nfe), other(IMAGES, NOISE, nfe))


def test_noisy() -> None:
    chosen = [
        (2, "ode", 0.68, 0.3125, 25), (5, "ode", 0.8, 0.02, 25), (8, "window:0.9:0.3:10000:1", 0.92, 0.0049, 25),
        (10, "window:1.0:0.3:10000:1", 1.0, 0.0025, 25), (20, "window:1.5:0.00937:10000:1", 1.4, 0.002, 80),
        (50, "window:1.5:9.6e-05:10000:1", 2.0, 0.002, 80),
    ]  # fmt: skip
    for nfe, noise, nodes, lam_min, lam_max in chosen:
        assert noisy(nfe).solver == ERSDE(2, noise, nodes=nodes, relative=True)
        assert noisy(nfe).add_mean
        expected = grids.edm(nfe, lam_min=lam_min, lam_max=lam_max, rho=10.0)
        torch.testing.assert_close(noisy(nfe).grid(nfe), expected, rtol=1e-3, atol=0)


def first_x0_given(data: Gaussian, x0: Tensor) -> Any:
    """`data` as a denoiser whose first call gives x0."""
    calls = count()
    return lambda y, lam: data(y, lam) if next(calls) else x0


@pytest.mark.parametrize(
    "solver", [ERSDE(3, corrector=3), ERSDE(2, corrector=1), ERSDE(2, paper=True), DPMSolverPP(), UniPC(), DDIM(1.0)]
)
@pytest.mark.parametrize("nfe", [1, 2, 7])
def test_the_mean_is_added_to_the_first_state(solver: Solver, nfe: int) -> None:
    table = solver.tableau(grids.edm(nfe))
    y = 80 * NOISE.initial()
    x0 = IMAGES(y, torch.tensor(80.0))
    expected = sample(first_x0_given(IMAGES, x0), table, y + x0, noise=NOISE)
    torch.testing.assert_close(sample(IMAGES, with_mean(table), y, noise=NOISE), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [ERSDE(2, "ode", nodes=2.0, relative=True), UniPC(), SDEDPMSolverPP()])
def test_a_mean_added_comes_nearer_to_images(solver: Solver) -> None:
    without, with_it = (error_from_pure_noise(IMAGES, TableSampler(solver, add_mean=add), 50) for add in (False, True))
    assert with_it < 0.9 * without


def test_no_mean_is_added_in_slopes() -> None:
    with pytest.raises(ValueError, match="in x0 alone, not in slopes"):
        TableSampler(DEIS(), add_mean=True)(IMAGES, NOISE, 5)
    with pytest.raises(ValueError, match="add_mean is for solvers with a table, not for heun"):
        registry.sampler("heun", add_mean=True)


def test_the_documented_numbers_are_right() -> None:
    rows = [line for line in default.__doc__.splitlines() if re.search(r" \.\d", line)]  # type: ignore[union-attr]
    documented = [[float(x) for x in re.findall(r"(?<= )\d*\.\d+(?:e-\d)?", row)][-5:] for row in rows]
    exact = ERSDE(2, "er_sde_5", nodes=2.0, relative=True)
    solvers = [None, exact, ERSDE(3, corrector=3), ERSDE(3, paper=True), DEIS(), UniPC(), SDEDPMSolverPP()]
    for solver, expected in zip(solvers, documented, strict=True):
        samplers = [TableSampler(solver) if solver else default(n) for n in (6, 8, 10, 20, 50)]
        tables = [s.solver.tableau(s.grid(n)) for s, n in zip(samplers, (6, 8, 10, 20, 50), strict=True)]
        assert [w2_error(Gaussian.spectrum(), table) for table in tables] == pytest.approx(expected, rel=0.06)
