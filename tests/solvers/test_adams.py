from itertools import pairwise

import pytest
import torch

from ersde_lit.solvers.adams import DEIS, IPNDM


@pytest.mark.parametrize("n", [3, 10, 30])
def test_ipndm_is_diffusers(rivals, edm_lams, n) -> None:
    """Theirs: order 4, VP, v prediction, `betas` and `alphas` for sigma and alpha, full order into 0, hence the end."""
    diffusers = pytest.importorskip("diffusers")
    lams = edm_lams(n, 0.002)
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(n)
    scheduler.alphas = 1 / (1 + lams**2).sqrt()
    scheduler.betas = lams * scheduler.alphas
    x = scheduler.alphas[0] * rivals.start(lams)
    steps = zip(scheduler.timesteps, scheduler.alphas[:-1], scheduler.betas[:-1], lams[:-1], strict=True)
    for t, alpha, sigma, lam in steps:
        x0 = rivals.denoiser(x / alpha, lam)
        x = scheduler.step(alpha * (x - alpha * x0) / sigma - sigma * x0, t, x).prev_sample
    torch.testing.assert_close(rivals.ours(IPNDM(4), lams), x / scheduler.alphas[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_the_published_update_on_the_edm_grid(rivals, edm_lams, order) -> None:
    lams = edm_lams(10, 0)
    y, slopes = rivals.start(lams), []
    for i, (old, new) in enumerate(pairwise(lams)):
        slopes.insert(0, (y - rivals.denoiser(y, old)) / old)
        d = slopes[0]
        k = min(order, i + 1) if new > 0 else 1
        if k == 2:
            d = (3 * d - slopes[1]) / 2
        elif k == 3:
            d = (23 * d - 16 * slopes[1] + 5 * slopes[2]) / 12
        elif k == 4:
            d = (55 * d - 59 * slopes[1] + 37 * slopes[2] - 9 * slopes[3]) / 24
        y = y + (new - old) * d
    torch.testing.assert_close(rivals.ours(IPNDM(order), lams), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [5, 14, 15, 30])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower", [True, False])
def test_deis_is_diffusers(rivals, edm_lams, n, order, lower) -> None:
    """On grids that end above 0: diffusers never steps into 0, where its formulas are NaN."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DEISMultistepScheduler(
        prediction_type="sample",
        algorithm_type="deis",
        solver_type="logrho",
        solver_order=order,
        lower_order_final=lower,  # below 15 steps only
    )
    lams = edm_lams(n, 0.002)
    expected = rivals.diffusers_vp(scheduler, lams)
    torch.testing.assert_close(rivals.ours(DEIS(order, lower), lams), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [IPNDM(4), DEIS(3), DEIS(4)])
@pytest.mark.parametrize("end", [0, 0.002])
def test_rows_hold_a_constant_slope(edm_lams, solver, end) -> None:
    lams = edm_lams(20, end)
    table = solver.tableau(lams)
    assert table.history == "d"
    assert table.r.eq(1).all()
    assert table.b.eq(0).all()
    torch.testing.assert_close(table.c.sum(1), lams.diff(), rtol=1e-9, atol=1e-12)
    if end == 0:
        assert table.c[-1].tolist() == [-lams[-2].item()] + [0] * (table.c.shape[1] - 1)


def test_orders(local_order) -> None:
    assert local_order(IPNDM(4), spacing="lam") == pytest.approx(4, abs=0.35)  # 3.7: not yet there at N = 512
    assert local_order(IPNDM(4), spacing="log") == pytest.approx(2, abs=0.15)
    for order in (1, 2, 3, 4):
        assert local_order(DEIS(order)) == pytest.approx(order, abs=0.15)


def test_order_1_is_ddim(edm_lams, rivals) -> None:
    from ersde_lit.solvers.ddim import DDIM

    lams = edm_lams(10, 0)
    expected = rivals.ours(DDIM(), lams)
    for solver in (IPNDM(1), DEIS(1)):
        torch.testing.assert_close(rivals.ours(solver, lams), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [0, 5, 2.5, 2.0, True, "3", None])
def test_rejects_bad_orders(bad) -> None:
    with pytest.raises(ValueError, match="order of IPNDM"):
        IPNDM(bad)
    with pytest.raises(ValueError, match="order of DEIS"):
        DEIS(bad)
