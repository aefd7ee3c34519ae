import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ersde_lit.solvers.ddim import DDIM


def vp_run(rivals, scheduler, lams, **step) -> torch.Tensor:
    """A VP scheduler that steps by `alphas_cumprod`, whose timesteps n - 1 .. 0 are given the levels `lams`."""
    n = len(lams) - 1
    scheduler.set_timesteps(n)
    cumprod = 1 / (1 + lams**2)
    scheduler.alphas_cumprod = cumprod[:-1].flip(0)
    scheduler.final_alpha_cumprod = scheduler.one = cumprod[-1]
    x = cumprod[0].sqrt() * rivals.start(lams)
    for i, t in enumerate(range(n - 1, -1, -1)):
        x0 = rivals.denoiser(x / cumprod[i].sqrt(), lams[i])
        if "eta" in step:
            step["variance_noise"] = rivals.noise.step(i)
        x = scheduler.step(x0, t, x, **step).prev_sample
    return x / cumprod[-1].sqrt()


@pytest.mark.parametrize("end", [0, 0.002])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_is_diffusers(rivals, edm_lams, eta, end) -> None:
    diffusers = pytest.importorskip("diffusers")
    lams = edm_lams(20, end)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=20, prediction_type="sample", clip_sample=False)
    expected = vp_run(rivals, scheduler, lams, eta=eta)
    torch.testing.assert_close(rivals.ours(DDIM(eta), lams), expected, rtol=0, atol=1e-10)


def test_eta_1_is_diffusers_ddpm(rivals, edm_lams) -> None:
    diffusers = pytest.importorskip("diffusers")
    lams = edm_lams(20, 0)
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=20, prediction_type="sample", variance_type="fixed_small", clip_sample=False
    )
    expected = vp_run(rivals, rivals.in_double(scheduler), lams)
    torch.testing.assert_close(rivals.ours(DDIM(1), lams), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("eta", "phi"), [(0, "ode"), (1, "sde")])
@pytest.mark.parametrize("end", [0, 0.002])
def test_ends_are_order_1_er_sde(edm_lams, eta, phi, end) -> None:
    from ersde_lit.solvers.ersde import ERSDE

    ours, er = DDIM(eta).tableau(edm_lams(20, end)), ERSDE(1, phi).tableau(edm_lams(20, end))
    for name in ("lams", "r", "c", "b"):
        torch.testing.assert_close(getattr(ours, name), getattr(er, name), rtol=0, atol=1e-12)


@settings(deadline=None)
@given(st.floats(0, 1), st.lists(st.floats(0.001, 5), min_size=1, max_size=8), st.booleans())
def test_rows(eta: float, gaps: list[float], zero: bool) -> None:
    lams = 80 * torch.tensor([0, *gaps], dtype=torch.float64).cumsum(0).neg().exp()
    lams = torch.cat([lams, lams.new_zeros(int(zero))])
    table = DDIM(eta).tableau(lams)
    torch.testing.assert_close(table.r + table.c[:, 0], torch.ones_like(table.r), rtol=0, atol=1e-14)
    torch.testing.assert_close(table.b**2 + (lams[:-1] * table.r) ** 2, lams[1:] ** 2, rtol=1e-12, atol=0)
    assert eta > 0 or not table.b.any()


def test_orders(local_order, weak_order) -> None:
    assert local_order(DDIM(0)) == pytest.approx(1, abs=0.15)
    assert weak_order(DDIM(0.5)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan"), "x", None, True])
def test_rejects_other_etas(eta) -> None:
    with pytest.raises(ValueError, match="eta of DDIM"):
        DDIM(eta)
