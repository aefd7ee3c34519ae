from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ersde_lit.solvers import (
    DDIM,
    ERSDE,
    IPNDM,
    NFECounter,
    SeededNoise,
    TableSampler,
    default,
    grids,
    sample,
)
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


def test_a_table_that_tells_a_level_out_of_range_is_refused() -> None:
    @dataclass(frozen=True)
    class Telling:
        told: float

        def tableau(self, lams: Tensor) -> Any:
            return DDIM().tableau(lams)._replace(calls=torch.tensor([20.0, self.told], dtype=torch.float64))

    assert TableSampler(Telling(20.0)).table(Denoiser(0.01, 20.0), 2).calls is not None
    for told in (20.1, 0.009):
        with pytest.raises(ValueError, match=f"level {told}, outside its range, 20 to 0.01"):
            TableSampler(Telling(told)).table(Denoiser(0.01, 20.0), 2)
