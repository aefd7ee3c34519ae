import pytest
import torch

from ersde_lit.solvers.dpm_solver import DPMSolverPP, SDEDPMSolverPP


@pytest.mark.parametrize("end", [0, 0.002])
@pytest.mark.parametrize("n", [5, 14, 15, 30])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("lower", [True, False])
def test_is_diffusers(rivals, edm_lams, n, end, order, solver_type, lower) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=order,
        solver_type=solver_type,
        lower_order_final=lower,  # below 15 steps only
        euler_at_final=False,
        final_sigmas_type="sigma_min" if end else "zero",  # "zero": order 1 on the last step
    )
    lams = edm_lams(n, end)
    expected = rivals.diffusers_vp(scheduler, lams)
    torch.testing.assert_close(rivals.ours(DPMSolverPP(order, solver_type, lower), lams), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("end", [0, 0.002])
@pytest.mark.parametrize("n", [5, 14, 15, 30])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("lower", [True, False])
def test_sde_is_diffusers(rivals, edm_lams, n, end, solver_type, lower) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="sample",
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        solver_type=solver_type,
        lower_order_final=lower,
        euler_at_final=False,
        final_sigmas_type="sigma_min" if end else "zero",
    )
    lams = edm_lams(n, end)
    expected = rivals.diffusers_vp(scheduler, lams)
    torch.testing.assert_close(rivals.ours(SDEDPMSolverPP(solver_type, lower), lams), expected, rtol=0, atol=1e-12)


def test_is_diffusers_edm_on_a_ve_path(rivals, edm_lams) -> None:
    diffusers = pytest.importorskip("diffusers")
    lams = edm_lams(20, 0)
    scheduler = rivals.in_double(
        diffusers.EDMDPMSolverMultistepScheduler(
            sigma_data=0.5, prediction_type="epsilon", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
        )
    )
    scheduler.set_timesteps(20)
    scheduler.sigmas = lams
    x = rivals.start(lams)
    for t, lam in zip(scheduler.timesteps, lams[:-1], strict=True):
        c_skip, c_out = 0.25 / (lam**2 + 0.25), 0.5 * lam / (lam**2 + 0.25).sqrt()
        x = scheduler.step((rivals.denoiser(x, lam) - c_skip * x) / c_out, t, x).prev_sample
    torch.testing.assert_close(rivals.ours(DPMSolverPP(2), lams), x, rtol=0, atol=1e-11)


def test_orders(local_order, weak_order) -> None:
    assert local_order(DPMSolverPP(2, "midpoint")) == pytest.approx(2, abs=0.15)
    assert local_order(DPMSolverPP(2, "heun")) == pytest.approx(2, abs=0.15)
    # The published D2 is half of what an order of 3 takes.
    assert local_order(DPMSolverPP(3)) == pytest.approx(2, abs=0.15)
    assert weak_order(SDEDPMSolverPP("midpoint")) == pytest.approx(2, abs=0.15)
    assert weak_order(SDEDPMSolverPP("heun")) == pytest.approx(2, abs=0.15)


def test_3m_differs_from_order_3_by_half_a_second_derivative(edm_lams) -> None:
    """The row's second moment is half of the exact one, the others are exact."""
    from ersde_lit.solvers import exponential

    lams = edm_lams(20, 0)
    table = DPMSolverPP(3).tableau(lams)
    u = exponential.nodes(lams, 9, 9, 3)
    exact = exponential.moments((lams[9] / lams[10]).log().item(), 3)
    ratios = [(table.c[9] @ u**k).item() / exact[k] for k in range(3)]
    assert ratios == pytest.approx([1, 1, 0.5], abs=1e-12)


def test_rejects_unknown_options() -> None:
    with pytest.raises(ValueError, match="order of DPMSolverPP must be 2 or 3, not 4"):
        DPMSolverPP(4)
    with pytest.raises(ValueError, match=r"order of DPMSolverPP must be 2 or 3, not 2\.0"):
        DPMSolverPP(2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="solver_type"):
        DPMSolverPP(2, "euler")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="solver_type"):
        SDEDPMSolverPP("euler")  # type: ignore[arg-type]
