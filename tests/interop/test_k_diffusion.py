"""sample_er_sde, called as k-diffusion, ComfyUI and stable-diffusion-webui call their samplers."""

import importlib.util
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ersde_lit.interop.k_diffusion import sample_er_sde, sample_with, table_sigmas
from ersde_lit.interop.rivals import k_diffusion_module
from ersde_lit.solvers import DEIS, ERSDE, SavedTables, SeededNoise, Solver, UniPC, grids, sample, write_tables
from ersde_lit.solvers.grids import vp_levels

needs_k_diffusion = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("k_diffusion", "torchsde", "torchdiffeq"))), reason="needs k-diffusion"
)
SHAPE = (3, 4, 4)
SIGMAS = grids.edm(8, lam_max=14.6, lam_min=0.03)
NOISE = SeededNoise([5, 6], SHAPE, dtype=torch.float64)
X = SIGMAS[0] * NOISE.initial()


def exact(y: Tensor, lam: Tensor) -> Tensor:
    """The denoiser of 0.5 N(-0.4, 0.2^2) + 0.5 N(0.4, 0.2^2) in each coordinate; lam [] or [B]."""
    lam = lam.reshape(-1, *[1] * (y.ndim - 1))
    variance = 0.04 + lam**2
    return (0.04 * y + lam**2 * 0.4 * torch.tanh(0.4 * y / variance)) / variance


def ours(**options: Any) -> Tensor:
    return sample(exact, ERSDE(**options).tableau(SIGMAS), X, noise=NOISE)


def theirs(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """A noise sampler that gives what `ours` draws."""
    assert sigma_next < sigma
    return NOISE.step(int((sigma == SIGMAS).nonzero()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 2, "noise_scale": "sde", "corrector": 2},
        {"order": 2, "noise_scale": "er_sde_3", "nodes": 1.4, "relative": True},
        {"order": 3, "noise_scale": "ode", "corrector": 3},
        {"paper": True},
    ],
)
def test_it_is_our_loop(options: dict[str, Any]) -> None:
    x0 = sample_er_sde(exact, X, SIGMAS, disable=True, noise_sampler=theirs, **options)
    torch.testing.assert_close(x0, ours(**options), rtol=0, atol=1e-12)


@needs_k_diffusion
@pytest.mark.parametrize("wrapper", ["CompVisDenoiser", "OpenAIDenoiser", "CompVisVDenoiser", "VDenoiser"])
def test_k_diffusions_wrappers(wrapper: str) -> None:
    """A network of eps or v in their wrappers, against our loop on what the wrapper computes."""
    external = k_diffusion_module("external")
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    alphas_cumprod = (1 / (1 + vp_levels() ** 2)).float()

    class Inner(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            assert t.shape == (len(x),)
            return network(x) * (1 + t.view(-1, 1, 1, 1) / 1000) + (0 if cond is None else cond.view(-1, 1, 1, 1))

        apply_model = forward

    inner = Inner()
    inner.alphas_cumprod = alphas_cumprod
    if wrapper == "VDenoiser":
        model = external.VDenoiser(inner)
    elif wrapper == "OpenAIDenoiser":
        diffusion = SimpleNamespace(alphas_cumprod=alphas_cumprod.numpy())
        model = external.OpenAIDenoiser(inner, diffusion, has_learned_sigmas=False)
    else:
        model = getattr(external, wrapper)(inner, quantize=False)
    x, sigmas, cond = X.float(), SIGMAS.float(), torch.tensor([0.1, -0.2])
    x0 = sample_er_sde(model, x, sigmas, {"cond": cond}, disable=True, noise_sampler=theirs_float, corrector=3)
    expected = sample(
        lambda y, lam: model(y, lam.expand(len(y)), cond=cond),
        ERSDE(corrector=3).tableau(sigmas),
        x,
        noise=SeededNoise([5, 6], SHAPE),
    )
    torch.testing.assert_close(x0, expected, rtol=1e-5, atol=1e-5)


def theirs_float(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return NOISE.step(int((SIGMAS.float() == sigma).nonzero())).float()


def test_the_callback_is_told_what_programs_read() -> None:
    told: list[dict[str, Any]] = []
    models: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
        models.append((x, sigma))
        return exact(x, sigma)

    sample_er_sde(model, X, SIGMAS, {"seed": 5}, told.append, True)
    assert [set(t) for t in told] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * 8
    assert [t["i"] for t in told] == list(range(8))
    assert [float(t["sigma"]) for t in told] == [float(t["sigma_hat"]) for t in told] == SIGMAS[:-1].tolist()
    for t, (x, sigma) in zip(told, models, strict=True):
        torch.testing.assert_close(t["x"], x)
        torch.testing.assert_close(t["denoised"], exact(x, sigma))
        assert sigma.shape == (2,)


def test_progress_is_shown_unless_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    sample_er_sde(exact, X, SIGMAS, disable=True)
    assert capsys.readouterr().err == ""
    sample_er_sde(exact, X, SIGMAS, disable=False)
    assert "8/8" in capsys.readouterr().err


def test_a_seed_seeds_each_image() -> None:
    """As our own loop's: image k from seed + k; any batch; without a seed torch's global generator."""

    def run(x: Tensor, **extra_args: Any) -> Tensor:
        return sample_er_sde(lambda x, sigma, seed=None: exact(x, sigma), x, SIGMAS, extra_args, disable=True)

    torch.testing.assert_close(run(X, seed=5), ours(), rtol=0, atol=1e-12)
    torch.testing.assert_close(run(X, seed=[5, 6]), ours(), rtol=0, atol=1e-12)
    torch.testing.assert_close(run(X[1:], seed=6), ours()[1:], rtol=0, atol=1e-12)
    for seed in (np.int64(5), torch.tensor(5), np.array([5, 6]), torch.tensor([5, 6])):
        assert torch.equal(run(X, seed=seed), run(X, seed=5))
    assert torch.equal(run(X, seed=2**63 + 5), run(X, seed=5))  # ComfyUI's have 64 bits, of which 48 are used
    assert not torch.equal(run(X, seed=6), run(X, seed=5))
    runs = []
    with pytest.raises(ValueError, match="2 images need as many seeds, or the first one's, not 1"):
        run(X, seed=[5])
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(run(X))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_s_noise_scales_the_noise() -> None:
    quiet = sample_er_sde(exact, X, SIGMAS, disable=True, s_noise=0.0, noise_sampler=theirs)
    silent = sample_er_sde(exact, X, SIGMAS, disable=True, noise_sampler=lambda *_: torch.zeros_like(X))
    assert torch.equal(quiet, silent)
    loud = sample_er_sde(exact, X, SIGMAS, disable=True, s_noise=1.1, noise_sampler=theirs)
    expected = sample_er_sde(exact, X, SIGMAS, disable=True, noise_sampler=lambda *s: 1.1 * theirs(*s))
    torch.testing.assert_close(loud, expected, rtol=0, atol=1e-12)


def test_comfyuis_own_names() -> None:
    """Its node hands over phi as a function, and max_stage."""
    x0 = sample_er_sde(exact, X, SIGMAS, None, None, True, 1.0, theirs, lambda lam: lam * ((lam**0.3).exp() + 10), 2)
    torch.testing.assert_close(x0, ours(order=2, noise_scale="er_sde_5"), rtol=0, atol=1e-10)
    x0 = sample_er_sde(exact, X, SIGMAS, disable=True, noise_scaler=lambda lam: lam)
    torch.testing.assert_close(x0, ours(noise_scale="ode"), rtol=0, atol=1e-12)


class CONST:
    """ComfyUI's mark of a flow model."""


@pytest.mark.parametrize("first", [1.0, 0.98])
def test_flow_models(first: float) -> None:
    """States are (1 - t) x0 + t eps, sigmas t; ComfyUI's model says so itself."""
    t = torch.linspace(first, 0, 9, dtype=torch.float64)
    seen: list[Tensor] = []

    class Model:
        class inner_model:
            class model_patcher:
                @staticmethod
                def get_model_object(name: str) -> Any:
                    assert name == "model_sampling"
                    return type("ModelSampling", (CONST,), {})()

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(sigma)
            t = sigma.clamp(max=0.999).view(-1, 1, 1, 1)
            return exact(x / (1 - t), (t / (1 - t)).flatten())

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return NOISE.step(int((t == sigma).nonzero()))

    noise = NOISE.initial()
    args = (first * noise, t, None, None, True)
    x0 = sample_er_sde(Model(), *args, noise_sampler=draw)
    levels = t.clone().clamp(max=0.999)
    lams = levels / (1 - levels)
    expected = sample(exact, ERSDE().tableau(lams), first * noise * (1 + lams[0]), noise=NOISE)
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-10)
    assert [float(s[0]) for s in seen] == pytest.approx(t[:-1].tolist())  # the program's own
    told = sample_er_sde(
        Model().__call__, first * noise, t, disable=True, flow=True, noise_sampler=lambda s, _: noise_at(t, s)
    )
    assert torch.equal(told, x0)


def noise_at(t: Tensor, sigma: Tensor) -> Tensor:
    return NOISE.step(int((t == sigma).nonzero()))


def test_half_precision_stays_outside() -> None:
    """The model and the caller see x's dtype, the loop computes in float32."""
    x, sigmas = X.half(), SIGMAS.float()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        assert x.dtype == torch.float16
        return exact(x.float(), sigma.float()).half()

    x0 = sample_er_sde(model, x, sigmas, disable=True, noise_scale="ode", corrector=3)
    assert x0.dtype == torch.float16
    torch.testing.assert_close(x0.double(), ours(noise_scale="ode", corrector=3), rtol=0, atol=5e-3)


def test_an_end_above_zero_and_nothing_to_do() -> None:
    sigmas = SIGMAS[:-1]
    x = sample_er_sde(exact, X, sigmas, disable=True, noise_sampler=theirs)
    torch.testing.assert_close(x, sample(exact, ERSDE().tableau(sigmas), X, noise=NOISE), rtol=0, atol=1e-12)
    assert torch.equal(sample_er_sde(exact, X, SIGMAS[:1]), X)


def test_refuses_in_one_line() -> None:
    with pytest.raises(ValueError, match="strictly descending"):
        sample_er_sde(exact, X, SIGMAS.flip(0), disable=True)
    with pytest.raises(ValueError, match="unknown noise scale 'er_sde_6'"):
        sample_er_sde(exact, X, SIGMAS, noise_scale="er_sde_6")
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        sample_er_sde(lambda x, sigma: x * torch.nan, X, SIGMAS, disable=True)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("solver", [ERSDE(2, "sde", corrector=2), UniPC(3), DEIS()], ids=str)
def test_tables_run_with_their_sigmas_as_their_solver(solver: Solver, flow: bool, tmp_path: Path) -> None:
    grid = partial(grids.edm, lam_max=14.6, lam_min=0.03)
    tables = SavedTables({8: solver.tableau(grid(8))})
    write_tables(tmp_path / "x.tables", tables)
    x = X * (1 / 15.6 if flow else 1)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.view(-1, 1, 1, 1)
        return exact(x / (1 - sigma), sigma / (1 - sigma)) if flow else exact(x, sigma)

    def run(**options: Any) -> Tensor:
        return sample_er_sde(model, x, table_sigmas(tables, 8, flow), {}, None, True, flow=flow, **options)

    given: dict[str, Any] = {"noise_sampler": lambda *levels: NOISE.step(next(count))}
    results = []
    for of_tables in (tables, str(tmp_path / "x.tables"), tmp_path / "x.tables"):
        count = iter(range(8))
        results.append(run(tables=of_tables, **given))
    count = iter(range(8))
    direct = sample_with(solver, model, x, table_sigmas(tables, 8, flow).double(), {}, None, True, flow=flow, **given)
    expected = sample(exact, solver.tableau(grid(8)), X, noise=NOISE)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for other in (expected, direct):
        torch.testing.assert_close(results[0], other, rtol=0, atol=2e-5)  # sigmas are of single precision


def test_tables_refuse_other_sigmas() -> None:
    tables = SavedTables({8: UniPC().tableau(SIGMAS)})
    for sigmas in (grids.edm(8, lam_max=14.0), SIGMAS[1:]):
        with pytest.raises(ValueError, match=r"its own noise levels|no table of 7 calls, only of 8"):
            sample_er_sde(exact, X, sigmas, disable=True, tables=tables)
