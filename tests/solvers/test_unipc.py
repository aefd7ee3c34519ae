import pytest
import torch

from ersde_lit.solvers.dpm_solver import DPMSolverPP
from ersde_lit.solvers.loop import NFECounter, sample
from ersde_lit.solvers.unipc import UniPC


# Into 0 theirs is NaN with "bh1", and with the full order.
@pytest.mark.parametrize(
    ("variant", "end", "lower"),
    [("bh2", 0, True), ("bh2", 0.002, True), ("bh2", 0.002, False), ("bh1", 0.002, True), ("bh1", 0.002, False)],
)
@pytest.mark.parametrize("n", [5, 10, 30])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_is_diffusers(rivals, edm_lams, n, end, order, variant, lower) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="sample",
        predict_x0=True,
        solver_order=order,
        solver_type=variant,
        lower_order_final=lower,  # at any number of steps
        disable_corrector=[],
    )
    lams = edm_lams(n, end)
    expected = rivals.diffusers_vp(scheduler, lams)
    torch.testing.assert_close(rivals.ours(UniPC(order, variant, lower), lams), expected, rtol=0, atol=1e-12)


def test_variants_differ_only_where_there_are_two_nodes(edm_lams) -> None:
    one, two = (UniPC(3, variant).tableau(edm_lams(8, 0)) for variant in ("bh1", "bh2"))
    assert (one.c != two.c).any(1).nonzero().flatten().tolist() == [1, 6]  # the rows of order 2
    assert (one.corrector != two.corrector).any(1).nonzero().flatten().tolist() == [0]  # the row of order 1
    for order, table in ((2, UniPC(2)), (3, UniPC(3))):
        assert table.tableau(edm_lams(8, 0)).corrector.shape == (8, order + 1)


def test_unip_2_bh2_is_dpm_solver_2m(edm_lams) -> None:
    lams = edm_lams(20, 0)
    torch.testing.assert_close(UniPC(2).tableau(lams).c, DPMSolverPP(2).tableau(lams).c, rtol=0, atol=1e-14)


def test_orders(local_order) -> None:
    for order in (1, 2, 3):
        solver = UniPC(order, lower_order_final=False)
        assert local_order(solver) == pytest.approx(order, abs=0.15)
        assert local_order(solver, corrector=True) == pytest.approx(order + 1, abs=0.15)


def test_one_call_a_step(rivals, edm_lams) -> None:
    lams = edm_lams(10, 0)
    counter = NFECounter(rivals.denoiser)
    table = UniPC(3).tableau(lams)
    sample(counter, table, rivals.start(lams))
    assert counter.nfe == table.nfe == 10
    assert not table.b.any()


def test_rejects_unknown_options() -> None:
    for order in (0, 2.5, True, "2"):
        with pytest.raises(ValueError, match="order of UniPC"):
            UniPC(order)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variant"):
        UniPC(2, "bh3")  # type: ignore[arg-type]
