"""Other people's samplers give what our table of the same method does, from the same noise."""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from ersde_lit.callbacks import FIDCallback
from ersde_lit.cli.options.sweep import SweepOptions
from ersde_lit.interop.rivals import DiffusersSampler, KDiffusionSampler
from ersde_lit.solvers import (
    DDIM,
    DEIS,
    IPNDM,
    DPMSolverPP,
    Heun,
    NFECounter,
    SASolver,
    SDEDPMSolverPP,
    SeededNoise,
    TableSampler,
    UniPC,
    grids,
)
from ersde_lit.solvers.oracles import Mixture

needs_diffusers = pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="needs diffusers")
needs_k_diffusion = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("k_diffusion", "torchsde", "torchdiffeq"))), reason="needs k-diffusion"
)

DPM = "DPMSolverMultistepScheduler"
NOISE = SeededNoise(range(6), (4,))
DOUBLE = SeededNoise(range(6), (4,), dtype=torch.float64)
MIXTURE = Mixture(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.tensor([[0.8, -0.5, 0.3, 0.1], [-0.6, 0.4, -0.9, 0.2]], dtype=torch.float64),
    torch.tensor([[0.3], [0.05]], dtype=torch.float64),
)
ABOVE_ZERO = partial(grids.edm, zero=False)


@needs_diffusers
@pytest.mark.parametrize("nfe", [5, 20])
@pytest.mark.parametrize(
    ("scheduler", "config", "solver"),
    [
        ("EulerDiscreteScheduler", {}, DDIM()),
        ("EulerAncestralDiscreteScheduler", {}, DDIM(1.0)),
        (DPM, {}, DPMSolverPP()),
        (DPM, {"solver_type": "heun", "lower_order_final": False}, DPMSolverPP(2, "heun", lower_order_final=False)),
        (DPM, {"solver_order": 3}, DPMSolverPP(3)),
        (DPM, {"algorithm_type": "sde-dpmsolver++"}, SDEDPMSolverPP()),
        ("UniPCMultistepScheduler", {}, UniPC()),
        ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1"}, UniPC(3, "bh1")),
        ("DEISMultistepScheduler", {"solver_order": 3}, DEIS()),
        ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4}, SASolver()),
        ("IPNDMScheduler", {}, IPNDM()),
    ],
)
def test_diffusers_is_our_table(scheduler: str, config: dict[str, Any], solver: Any, nfe: int) -> None:
    for grid in (grids.edm, partial(grids.log_uniform, lam_max=20.0, zero=False)):
        denoiser = NFECounter(MIXTURE)
        sampler = DiffusersSampler(scheduler, config, grid)
        x0, expected = sampler(denoiser, DOUBLE, nfe), TableSampler(solver, grid)(MIXTURE, DOUBLE, nfe)
        assert denoiser.nfe == sampler.calls(nfe) == nfe
        torch.testing.assert_close(x0, expected, rtol=0, atol=1e-5)  # some of theirs step in float32
        single = sampler(MIXTURE, NOISE, nfe)
        torch.testing.assert_close(single, expected.float(), rtol=0, atol=3e-5)  # SA-Solver's weights are large


@needs_diffusers
def test_diffusers_itself_is_not_changed() -> None:
    """Not even while a step draws its noise, so that other threads can use diffusers."""
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

    class Watching:
        initial = NOISE.initial

        def step(self, i: int) -> Tensor:
            seen.append(module.randn_tensor)
            return NOISE.step(i)

    own, seen = module.randn_tensor, []
    DiffusersSampler("EulerAncestralDiscreteScheduler")(MIXTURE, Watching(), 5)
    assert seen == [own] * 4


def both_heuns() -> list[Any]:
    return [
        pytest.param(partial(DiffusersSampler, "HeunDiscreteScheduler"), 1e-5, marks=needs_diffusers),
        pytest.param(partial(KDiffusionSampler, "heun"), 1e-10, marks=needs_k_diffusion),
    ]


@pytest.mark.parametrize(("make", "atol"), both_heuns())
def test_heun_is_ours(make: Callable[..., Any], atol: float) -> None:
    sampler, denoiser = make(), NFECounter(MIXTURE)
    x0 = sampler(denoiser, DOUBLE, 10)
    assert denoiser.nfe == sampler.calls(10) == 9
    torch.testing.assert_close(x0, Heun()(MIXTURE, DOUBLE, 10), rtol=0, atol=atol)
    with pytest.raises(ValueError, match=r"needs a grid that ends in 0, not 0\.002"):
        make(grid=ABOVE_ZERO)(MIXTURE, DOUBLE, 10)


@needs_k_diffusion
@pytest.mark.parametrize("nfe", [5, 20])
@pytest.mark.parametrize(
    ("function", "options", "solver"),
    [
        ("sample_euler", {}, DDIM()),
        ("euler_ancestral", {}, DDIM(1.0)),
        ("euler_ancestral", {"eta": 0.5}, DDIM(0.5)),
        ("lms", {"order": 1}, DDIM()),
        ("sample_dpmpp_2m", {}, DPMSolverPP(lower_order_final=False)),
        ("dpmpp_2m_sde", {}, SDEDPMSolverPP(lower_order_final=False)),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, SDEDPMSolverPP("heun", lower_order_final=False)),
    ],
)
def test_k_diffusion_is_our_table(function: str, options: dict[str, Any], solver: Any, nfe: int) -> None:
    denoiser = NFECounter(MIXTURE)
    sampler = KDiffusionSampler(function, options)
    x0 = sampler(denoiser, DOUBLE, nfe)
    assert denoiser.nfe == sampler.calls(nfe) == nfe
    torch.testing.assert_close(x0, TableSampler(solver)(MIXTURE, DOUBLE, nfe), rtol=0, atol=1e-10)
    x0 = sampler(MIXTURE, NOISE, nfe)
    torch.testing.assert_close(x0, TableSampler(solver)(MIXTURE, NOISE, nfe), rtol=0, atol=1e-5)


@needs_k_diffusion
@pytest.mark.parametrize(
    "function", ["lms", "dpmpp_3m_sde", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"]
)
def test_functions_without_a_table_of_ours_find_the_data(function: str) -> None:
    """Data N(0.3, 0.2^2) from 500 seeds; calls are counted and noise is that of the seeds."""

    def denoiser(y: Tensor, lam: Tensor) -> Tensor:
        return 0.3 + 0.04 / (0.04 + lam**2) * (y - 0.3)

    sampler, counter = KDiffusionSampler(function), NFECounter(denoiser)
    noise = SeededNoise(range(500), (4,), dtype=torch.float64)
    x0 = sampler(counter, noise, 199)
    assert counter.nfe == sampler.calls(199) == 199
    assert (x0.mean().item(), x0.std().item()) == (pytest.approx(0.3, abs=0.02), pytest.approx(0.2, rel=0.05))
    torch.manual_seed(3)  # nothing may come from the global generator
    few = SeededNoise(range(7, 9), (4,), dtype=torch.float64)
    torch.testing.assert_close(sampler(denoiser, few, 199), x0[7:9], rtol=0, atol=1e-10)


SAMPLERS = [
    pytest.param(DiffusersSampler, (DPM, {"algorithm_type": "sde-dpmsolver++"}), marks=needs_diffusers),
    pytest.param(KDiffusionSampler, ("dpmpp_2m_sde",), marks=needs_k_diffusion),
]


@pytest.mark.parametrize(("kind", "args"), SAMPLERS)
def test_images_depend_on_their_seeds_alone(kind: Any, args: tuple[Any, ...]) -> None:
    sampler = kind(*args)
    alone = sampler(MIXTURE, SeededNoise([4], (4,)), 8)
    torch.testing.assert_close(sampler(MIXTURE, NOISE, 8)[4:5], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "args"), SAMPLERS)
def test_it_serves_a_denoiser_like_any_sampler(kind: Any, args: tuple[Any, ...]) -> None:
    """The grid is fitted to the denoiser, labels arrive, levels are 0-dim on the host, NaN raises."""
    calls: list[tuple[int, float, Tensor, Tensor]] = []

    class Limited:
        lam_min, lam_max = 0.01, 10.0
        lams: list[float] = []  # noqa: RUF012

        def __call__(self, y: Tensor, lam: Tensor, labels: Tensor) -> Tensor:
            assert lam.ndim == 0
            assert lam.device.type == "cpu"
            self.lams.append(float(lam))
            return MIXTURE(y, lam) + labels[:, None]

    denoiser, labels = Limited(), torch.arange(6)
    denoiser.lams = []
    x0 = kind(*args)(denoiser, NOISE, 5, labels=labels, callback=lambda *call: calls.append(call))
    expected = TableSampler(SDEDPMSolverPP(lower_order_final=kind is DiffusersSampler))(denoiser, NOISE, 5, labels)
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-4)
    assert denoiser.lams[:5] == pytest.approx(denoiser.lams[5:], rel=1e-5)
    assert max(denoiser.lams) <= 10
    assert [call[0] for call in calls] == [0, 1, 2, 3, 4]
    assert [float(call[1]) for call in calls] == denoiser.lams[:5]
    torch.testing.assert_close(calls[0][2], NOISE.initial() * 10, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(calls[-1][3].float(), x0)
    with pytest.raises(FloatingPointError, match=r"not finite at step 2 \(lam = 2.515"):
        kind(*args)(lambda y, lam: y * (torch.nan if lam < 5 else 0.5), NOISE, 5)


RIVALS = {
    "unipc": {
        "class_path": "ersde_lit.interop.rivals.DiffusersSampler",
        "init_args": {"scheduler": "UniPCMultistepScheduler", "config": {"solver_order": 3}},
    },
    "heun": {"class_path": "ersde_lit.interop.rivals.KDiffusionSampler", "init_args": {"function": "sample_heun"}},
}


@needs_diffusers
@needs_k_diffusion
def test_yaml_makes_them_for_the_callback() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(FIDCallback, "fid")
    samplers = parser.instantiate(parser.parse_object({"fid": {"samplers": RIVALS}})).fid.samplers
    assert samplers["unipc"] == DiffusersSampler("UniPCMultistepScheduler", {"solver_order": 3})
    assert samplers["heun"] == KDiffusionSampler("sample_heun")


@needs_diffusers
@needs_k_diffusion
def test_yaml_makes_them_for_evaluate() -> None:
    choices = SweepOptions(nfe=[6], samplers=RIVALS).choices(MIXTURE)
    assert [(choice.label, choice.nfe) for choice in choices] == [("unipc", 6), ("heun", 5)]
    for choice in choices:
        denoiser = NFECounter(MIXTURE)
        assert choice.sampler(denoiser, NOISE, choice.asked).shape == (6, 4)
        assert denoiser.nfe == choice.nfe
    wrong = SweepOptions(samplers={"wrong": {**RIVALS["unipc"], "init_args": {"scheduler": "PNDMScheduler"}}})
    with pytest.raises(ValueError, match=r"DiffusersSampler runs Euler[^\n]*, not PNDMScheduler"):
        wrong.choices(MIXTURE)


@needs_diffusers
def test_diffusers_refuses_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"DiffusersSampler runs Euler.*, not DDIMScheduler"):
        DiffusersSampler("DDIMScheduler")
    with pytest.raises(ValueError, match=r"DPMSolverMultistepScheduler takes no 'order' here, only .*solver_order"):
        DiffusersSampler(DPM, {"order": 3})
    with pytest.raises(ValueError, match="takes no 'prediction_type' here"):
        DiffusersSampler(DPM, {"prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="number of calls"):
        DiffusersSampler(DPM)(MIXTURE, NOISE, 0)


@needs_k_diffusion
def test_k_diffusion_refuses_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"KDiffusionSampler runs euler.*, not sample_dpm_adaptive"):
        KDiffusionSampler("sample_dpm_adaptive")
    with pytest.raises(ValueError, match="euler takes no 's_churn' here, only s_noise"):
        KDiffusionSampler("euler", {"s_churn": 1.0})


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusers", "k_diffusion"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^DiffusersSampler needs diffusers: pip install diffusers$"):
        DiffusersSampler(DPM)
    with pytest.raises(ValueError, match=r"^k-diffusion is not installed: pip install [^\n]*$"):
        KDiffusionSampler("euler")
