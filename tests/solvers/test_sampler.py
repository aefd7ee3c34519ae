from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ersde_lit.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    Default,
    DPMSolverPP,
    NFECounter,
    SDEDPMSolverPP,
    SeededNoise,
    Solver,
    TableSampler,
    UniPC,
    default,
    grids,
    sample,
)
from ersde_lit.solvers.oracles import Gaussian, output_law, w2, w2_error
from ersde_lit.solvers.sampler import adapt_grid


@dataclass
class Denoiser:
    """Records the lams it is called at."""

    lam_min: float = 0.0
    lam_max: float = float("inf")
    levels: Tensor | None = None
    called: list[float] = field(default_factory=list)

    def __call__(self, y: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        self.called.append(lam.item())
        return y / (1 + lam**2) if labels is None else y * 0 + labels.view(-1, 1)


NOISE = SeededNoise([1, 2], (3,), dtype=torch.float64)


@pytest.mark.parametrize("solver", [DDIM(1.0), ERSDE(3, corrector=3), IPNDM(), ERSDE(2, paper=True)])
@pytest.mark.parametrize("grid", [grids.edm, grids.vp_discrete, partial(grids.log_uniform, zero=False)])
@pytest.mark.parametrize("nfe", [1, 2, 7])
def test_makes_exactly_nfe_calls(solver, grid, nfe: int) -> None:
    for denoiser in (Denoiser(), Denoiser(0.01, 20.0), Denoiser(0.01, 157, grids.vp_levels())):
        counter = NFECounter(denoiser)
        assert TableSampler(solver, grid)(counter, NOISE, nfe).shape == (2, 3)
        assert counter.nfe == nfe


def test_is_the_loop_from_scaled_noise() -> None:
    sampler = TableSampler(ERSDE(corrector=3), partial(grids.edm, rho=5))
    tableau = sampler.solver.tableau(grids.edm(6, rho=5))
    seen: list[int] = []
    out = sampler(Denoiser(), NOISE, 6, callback=lambda i, *_: seen.append(i))
    assert torch.equal(out, sample(Denoiser(), tableau, NOISE.initial() * 80, noise=NOISE))
    assert seen == list(range(6))


def test_hands_labels_on() -> None:
    assert TableSampler(DDIM())(Denoiser(), NOISE, 3, labels=torch.tensor([4, 5])).tolist() == [[4] * 3, [5] * 3]


def test_builds_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    assert not TableSampler(DDIM())(lambda y, lam: y * weight, NOISE, 2).requires_grad


@pytest.mark.parametrize("nfe", [0, -3, 2.0, None, True])
def test_refuses_a_number_of_calls_that_is_none(nfe) -> None:
    for make in (lambda: TableSampler(DDIM())(Denoiser(), NOISE, nfe), lambda: default(nfe)):
        with pytest.raises(ValueError, match="number of calls"):
            make()


# Fitting a grid to a denoiser


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(1e-4, 0.1), st.floats(1, 300), st.booleans())
def test_fits_the_range(n: int, lam_min: float, lam_max: float, zero: bool) -> None:
    grid = grids.edm(n, zero=zero)
    lams = adapt_grid(grid, Denoiser(lam_min, lam_max))
    finite = lams[lams > 0]
    assert len(lams) == n + 1
    assert (lams[-1] == 0) == zero
    assert lam_min <= finite[-1]
    assert finite[0] <= lam_max
    if len(finite) > 1:  # an end that had to move is at the limit, one that had not stayed
        assert finite[0].item() == pytest.approx(min(80, lam_max), rel=1e-12)
        assert finite[-1].item() == pytest.approx(max(0.002, lam_min), rel=1e-7)
        before, after = grid[: len(finite)].log(), finite.log()
        position = [(x - x[-1]) / (x[0] - x[-1]) for x in (before, after)]
        torch.testing.assert_close(*position, rtol=0, atol=1e-9)


def test_leaves_a_grid_that_fits_untouched() -> None:
    for denoiser in (Denoiser(), Denoiser(0.002, 80.0), Denoiser(1e-5, 1e5), object()):
        assert torch.equal(adapt_grid(grids.edm(9), denoiser), grids.edm(9))


def test_a_range_beside_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="the grid, 80 to 10, misses the denoiser's"):
        adapt_grid(grids.edm(4, lam_min=10), Denoiser(0.01, 5))


@pytest.mark.parametrize("ascending", [False, True])
@settings(deadline=None)
@given(data=st.data())
def test_each_call_has_a_level_of_its_own(data, ascending: bool) -> None:
    levels = torch.tensor(sorted(data.draw(st.sets(st.floats(0.01, 79), min_size=3, max_size=60))), dtype=torch.float64)
    n = data.draw(st.integers(1, len(levels) - 1))
    zero = data.draw(st.booleans())
    grid = data.draw(st.sampled_from([grids.edm, grids.log_uniform]))(n, zero=zero)
    denoiser = Denoiser(levels[0].item(), levels[-1].item(), levels if ascending else levels.flip(0))
    lams = adapt_grid(grid, denoiser)
    finite = lams[lams > 0]
    assert len(lams) == n + 1
    assert (lams.diff() < 0).all()
    assert torch.isin(finite, levels).all()


def test_takes_the_nearest_level() -> None:
    levels = grids.vp_levels()
    grid = grids.edm(10, lam_min=0.02, lam_max=100)
    lams = adapt_grid(grid, Denoiser(levels=levels))[:-1]
    distance = (lams.log() - grid[:-1].log()).abs()
    assert torch.equal(distance, (levels.log().unsqueeze(1) - grid[:-1].log()).abs().min(0).values)
    assert torch.equal(adapt_grid(grids.vp_discrete(20), Denoiser(levels=levels)), grids.vp_discrete(20))


def test_all_levels_and_not_one_more() -> None:
    levels = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    assert adapt_grid(grids.edm(3), Denoiser(0.1, 10, levels)).tolist() == [10.0, 1.0, 0.1, 0.0]
    for n, zero in ((4, True), (3, False)):
        with pytest.raises(ValueError, match="3 noise levels cannot be sampled at 4"):
            adapt_grid(grids.edm(n, zero=zero), Denoiser(0.1, 10, levels))


def test_the_denoiser_is_called_at_its_levels() -> None:
    denoiser = Denoiser(0.01, 157.4, grids.vp_levels())
    TableSampler(ERSDE())(denoiser, NOISE, 12)
    assert set(denoiser.called) <= set(grids.vp_levels().tolist())
    assert len(set(denoiser.called)) == 12


def test_default() -> None:
    above_5 = "window:0.6:5:10000:1"
    chosen: list[tuple[int, str, float, float, float]] = [
        (1, "ode", 2.68, 20, 5), (4, "ode", 1.93, 26, 5), (5, "ode", 1.88, 32.5, 9), (6, above_5, 1.85, 39, 9),
        (20, above_5, 1.73, 80, 9), (50, above_5, 1.7, 80, 9),
    ]  # fmt: skip
    for nfe, noise, nodes, lam_max, rho in chosen:
        sampler = default(nfe)
        assert sampler.solver == ERSDE(2, noise, nodes=nodes, relative=True)
        torch.testing.assert_close(sampler.grid(nfe), grids.edm(nfe, lam_max=lam_max, rho=rho))
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
def test_the_default_can_be_named_as_a_sampler(nfe: int) -> None:
    denoiser = NFECounter(Denoiser())
    assert torch.equal(Default()(denoiser, NOISE, nfe), default(nfe)(Denoiser(), NOISE, nfe))
    assert denoiser.nfe == nfe
    other = Default(grids.log_uniform)(Denoiser(), NOISE, nfe)
    assert torch.equal(
        other, TableSampler(default(nfe).solver, grids.log_uniform, add_mean=True)(Denoiser(), NOISE, nfe)
    )


def test_the_documented_numbers_are_right() -> None:
    rows = [line for line in default.__doc__.splitlines() if re.search(r" \.\d", line)]  # type: ignore[union-attr]
    documented = [[float(x) for x in re.findall(r"(?<= )\d*\.\d+(?:e-\d)?", row)][-5:] for row in rows]
    exact = ERSDE(2, "er_sde_5", nodes=2.0, relative=True)
    solvers = [None, exact, ERSDE(3, corrector=3), ERSDE(3, paper=True), DEIS(), UniPC(), SDEDPMSolverPP()]
    for solver, expected in zip(solvers, documented, strict=True):
        samplers = [TableSampler(solver) if solver else default(n) for n in (6, 8, 10, 20, 50)]
        tables = [s.solver.tableau(s.grid(n)) for s, n in zip(samplers, (6, 8, 10, 20, 50), strict=True)]
        assert [w2_error(Gaussian.spectrum(), table) for table in tables] == pytest.approx(expected, rel=0.06)
