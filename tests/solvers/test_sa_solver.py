import math

import pytest
import torch

from ersde_lit.solvers.sa_solver import SASolver
from ersde_lit.solvers.unipc import UniPC


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (1, 2), (2, 2), (2, 1), (3, 3), (3, 4), (4, 4), (2, 4)])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("lower", [True, False])
def test_is_diffusers(rivals, edm_lams, n, predictor, corrector, tau, lower) -> None:
    """On grids that end above 0: diffusers never steps into 0, where its formulas are NaN."""
    diffusers = pytest.importorskip("diffusers")
    lams = edm_lams(n, 0.002)

    def tau_of_step(t: torch.Tensor) -> torch.Tensor:  # timesteps count down from n
        return torch.tensor(tau if 0.05 <= lams[n - int(t)] <= 10 else 0, dtype=torch.float64)

    scheduler = diffusers.SASolverScheduler(
        prediction_type="sample",
        algorithm_type="data_prediction",
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=tau_of_step,
        lower_order_final=lower,
    )
    expected = rivals.diffusers_vp(scheduler, lams)
    ours = rivals.ours(SASolver(predictor, corrector, tau, (0.05, 10.0), lower), lams)
    # Their integrals cancel in powers of ln lam at order 4.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_without_noise_it_is_unipc(edm_lams) -> None:
    lams = edm_lams(12, 0)
    ours, unipc = SASolver(3, 4, tau=0).tableau(lams), UniPC(3, "bh1").tableau(lams)
    torch.testing.assert_close(ours.c, unipc.c, rtol=0, atol=1e-14)
    torch.testing.assert_close(ours.corrector, unipc.corrector, rtol=0, atol=1e-14)
    assert not ours.b.any()


def test_noise_is_added_inside_the_window_only(edm_lams) -> None:
    lams = edm_lams(20, 0)
    table = SASolver(tau=0.8, window=(0.05, 1.0)).tableau(lams)
    inside = (lams[:-1] >= 0.05) & (lams[:-1] <= 1)
    assert inside.any()
    assert torch.equal(table.b > 0, inside)
    torch.testing.assert_close(table.b**2 + (table.r * lams[:-1]) ** 2, lams[1:] ** 2, rtol=1e-12, atol=0)
    assert SASolver(corrector_order=0).tableau(lams).corrector is None


def test_orders(local_order, weak_order) -> None:
    solver = SASolver(3, 4, tau=0, lower_order_final=False)
    assert local_order(solver) == pytest.approx(3, abs=0.15)
    assert local_order(solver, corrector=True) == pytest.approx(4, abs=0.15)
    stochastic = SASolver(2, 2, tau=1, window=(0, math.inf), lower_order_final=False)
    assert weak_order(stochastic) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("predictor_order", bad) for bad in (0, 5, 2.5, True, "2")),
        *(("corrector_order", bad) for bad in (-1, 5, 2.5, True, "2")),
        *(("tau", bad) for bad in (-1.0, math.inf, math.nan, "1")),
        *(("window", bad) for bad in ((1.0, 0.05), (3,), (1, 2, 3), 3, None, "12", (math.nan, 1), (-1, 1), ("a", "b"))),
    ],
)
def test_rejects_bad_options(name: str, bad) -> None:
    with pytest.raises(ValueError, match=f"{name} of SASolver"):
        SASolver(**{name: bad})
