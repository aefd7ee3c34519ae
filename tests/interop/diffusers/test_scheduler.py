"""The schedulers give what our loop does, with the conventions of diffusers' own."""

from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from ersde_lit.interop.diffusers.scheduler import (  # noqa: E402
    ERSDEEDMScheduler,
    ERSDEFlowMatchScheduler,
    ERSDEScheduler,
)
from ersde_lit.solvers import ERSDE, SeededNoise, grids, sample  # noqa: E402

SHAPE = (3, 4, 4)
NOISE = SeededNoise([5, 6], SHAPE, dtype=torch.float64)
KINDS = [ERSDEScheduler, ERSDEEDMScheduler, ERSDEFlowMatchScheduler]
SOLVERS: list[dict[str, Any]] = [
    {},
    {"order": 2, "noise_scale": "sde", "corrector": 2},
    {"order": 2, "noise_scale": "er_sde_3", "nodes": 1.4, "relative": True},
    {"order": 3, "noise_scale": "ode", "corrector": 3},
    {"paper": True},
]


def exact(y: Tensor, lam: Tensor | float) -> Tensor:
    """The denoiser of 0.5 N(-0.4, 0.2^2) + 0.5 N(0.4, 0.2^2) in each coordinate."""
    variance = 0.04 + lam**2
    return (0.04 * y + lam**2 * 0.4 * torch.tanh(0.4 * y / variance)) / variance


def alpha_of(scheduler: Any, lam: Tensor | float) -> float:
    if isinstance(scheduler, ERSDEEDMScheduler):
        return 1.0
    flow = isinstance(scheduler, ERSDEFlowMatchScheduler) or scheduler.config.use_flow_sigmas
    return float(1 / (1 + lam)) if flow else float(1 + lam**2) ** -0.5


def network(scheduler: Any, x: Tensor, lam: Tensor) -> Tensor:
    """What a perfect model of the scheduler's prediction type says of the state x, worked out by hand."""
    alpha = alpha_of(scheduler, lam)
    sigma = alpha * lam
    x0 = exact(x / alpha, lam)
    eps = (x - alpha * x0) / sigma
    if isinstance(scheduler, ERSDEEDMScheduler):
        root = (lam**2 + 0.25) ** 0.5
        f = (x0 - 0.25 / root**2 * x) / (0.5 * lam / root)
        return f if scheduler.config.prediction_type == "epsilon" else -f
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow_prediction": eps - x0}[kind]


def run(scheduler: Any, lams: Tensor, y: Tensor, begin: int = 0, **draw: Any) -> Tensor:
    """A pipeline's loop from y at ``lams[begin]``, with NOISE unless told otherwise."""
    x = alpha_of(scheduler, lams[begin]) * y
    for i, t in enumerate(scheduler.timesteps[begin:]):
        lam = lams[begin + i]
        assert scheduler.scale_model_input(x, t).shape == x.shape
        noise = draw or {"variance_noise": NOISE.step(i)}
        x = scheduler.step(network(scheduler, x, lam), t, x, **noise).prev_sample
    return x / alpha_of(scheduler, lams[-1])


def expected(lams: Tensor, y: Tensor, **options: Any) -> Tensor:
    return sample(exact, ERSDE(**options).tableau(lams), y, noise=NOISE)


@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_vp_is_our_loop(prediction: str, options: dict[str, Any]) -> None:
    levels = grids.vp_levels()
    for final, end in (("zero", torch.zeros(1, dtype=torch.float64)), ("sigma_min", levels[:1])):
        scheduler = ERSDEScheduler(prediction_type=prediction, final_sigmas_type=final, **options)
        scheduler.set_timesteps(9)
        lams = torch.cat([levels[[999, 888, 777, 666, 555, 444, 333, 222, 111]], end])
        y = lams[0] * NOISE.initial()
        torch.testing.assert_close(run(scheduler, lams, y), expected(lams, y, **options), rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_our_loop(prediction: str, options: dict[str, Any]) -> None:
    scheduler = ERSDEEDMScheduler(prediction_type=prediction, **options)
    scheduler.set_timesteps(9)
    y = 80 * NOISE.initial()
    torch.testing.assert_close(
        run(scheduler, grids.edm(9), y), expected(grids.edm(9), y, **options), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.parametrize("kind", ["twin", "flow_prediction", "epsilon", "sample"])
def test_flow_is_our_loop(kind: str, options: dict[str, Any]) -> None:
    if kind == "twin":
        scheduler = ERSDEFlowMatchScheduler(shift=2.0, **options)
    else:
        scheduler = ERSDEScheduler(use_flow_sigmas=True, flow_shift=2.0, prediction_type=kind, **options)
    given = torch.tensor([0.96, 0.8, 0.6, 0.3, 0.1], dtype=torch.float64)
    scheduler.set_timesteps(sigmas=given if kind == "twin" else [*given, 0.0])
    t = 2 * given / (1 + given) if kind == "twin" else given  # the twin shifts what it is given, as theirs does
    lams = torch.cat([t / (1 - t), torch.zeros(1, dtype=torch.float64)])
    y = lams[0] * NOISE.initial()
    torch.testing.assert_close(run(scheduler, lams, y), expected(lams, y, **options), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_and_generators(kind: Any) -> None:
    """The numbers of our loop to 1e-5; a list of generators makes image k from the k-th alone, whatever the batch."""
    scheduler = kind(corrector=3)

    def images(seeds: list[int]) -> Tensor:
        scheduler.set_timesteps(10)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.cat([torch.randn(1, *SHAPE, generator=g) for g in generators])
        return run(scheduler, scheduler._lams, scheduler._lams[0] * noise.double(), generator=generators).float()

    class Drawn:
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]  # noqa: RUF012

        def step(self, i: int) -> Tensor:
            return torch.cat([torch.randn(1, *SHAPE, generator=g) for g in self.generators])

    both = images([3, 4])
    y = Drawn().step(-1) * scheduler._lams[0].float()
    ours = sample(exact, ERSDE(corrector=3).tableau(scheduler._lams), y, noise=Drawn())
    torch.testing.assert_close(both, ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1:], images([4]), rtol=0, atol=1e-5)
    torch.testing.assert_close(both.flip(0), images([4, 3]), rtol=0, atol=1e-5)


def test_dpm_solver_is_a_table_of_ours_within_their_pipeline() -> None:
    """Their DPM-Solver++(2M, heun) is order-2 ER-SDE with phi = x and log nodes."""
    config = {"prediction_type": "v_prediction", "use_karras_sigmas": True}
    theirs = diffusers.DPMSolverMultistepScheduler(**config, solver_type="heun", lower_order_final=False)
    ours = ERSDEScheduler.from_config(theirs.config, order=2, noise_scale="ode", nodes="log")
    ours.set_timesteps(12)
    theirs.set_timesteps(12)
    y = ours._lams[0] * NOISE.initial().float()
    xs = []
    for scheduler in (ours, theirs):
        x = alpha_of(ours, ours._lams[0]) * y
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(network(ours, x, ours._lams[i]), t, x).prev_sample
        xs.append(x)
    torch.testing.assert_close(*xs, rtol=0, atol=2e-4)  # their levels are float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begin", [0, 3])
def test_a_run_may_begin_anywhere(kind: Any, begin: int) -> None:
    """As image to image does: by set_begin_index, or by the first timestep; its history begins there too."""
    scheduler = kind(order=3, corrector=3)
    for told in (True, False):
        scheduler.set_timesteps(9)
        lams = scheduler._lams
        if told:
            scheduler.set_begin_index(begin)
            assert (scheduler.begin_index, scheduler.step_index) == (begin, None)
        y = lams[begin] * NOISE.initial()
        x0 = run(scheduler, lams, y, begin)
        assert scheduler.step_index == 9
        torch.testing.assert_close(x0, expected(lams[begin:], y, corrector=3), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_add_noise(kind: Any) -> None:
    """alpha (x0 + lam eps): of any trained timestep before set_timesteps, of the schedule's after, and of the step that
    a pipeline is at."""
    scheduler = kind()
    x0, eps = NOISE.step(0), NOISE.step(1)

    def of(*indices: int) -> Tensor:
        lam = scheduler._lams[list(indices)].view(-1, 1, 1, 1)
        alpha = torch.tensor([alpha_of(scheduler, lam) for lam in lam]).double().view(-1, 1, 1, 1)
        return alpha * (x0 + lam * eps)

    t = scheduler.timesteps[[10, 700]]
    torch.testing.assert_close(scheduler.add_noise(x0, eps, t), of(10, 700))
    scheduler.set_timesteps(9)
    torch.testing.assert_close(scheduler.add_noise(x0, eps, scheduler.timesteps[[2, 8]]), of(2, 8))
    half = scheduler.add_noise(x0.half(), eps.half(), scheduler.timesteps[[2, 8]])
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), of(2, 8), rtol=1e-2, atol=1e-2)
    scheduler.set_begin_index(4)
    torch.testing.assert_close(scheduler.add_noise(x0, eps, t), of(4, 4))
    scheduler.step(x0, scheduler.timesteps[4], x0)
    torch.testing.assert_close(scheduler.add_noise(x0, eps, t), of(5, 5))
    if kind is ERSDEFlowMatchScheduler:
        torch.testing.assert_close(scheduler.scale_noise(x0, t, eps), of(5, 5))
    if kind is ERSDEScheduler:
        theirs = diffusers.DDPMScheduler().add_noise(x0, eps, torch.tensor([989, 299]))
        torch.testing.assert_close(kind().add_noise(x0, eps, torch.tensor([989, 299])), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(kind: Any, dtype: torch.dtype) -> None:
    """States have the pipeline's dtype, arithmetic is in float32."""
    scheduler = kind(noise_scale="ode", corrector=3)
    scheduler.set_timesteps(10)
    lams = scheduler._lams
    x = (alpha_of(scheduler, lams[0]) * lams[0] * NOISE.initial()).to(dtype)
    for lam, t in zip(lams[:-1], scheduler.timesteps, strict=True):
        output = scheduler.step(network(scheduler, x.double(), lam).to(dtype), t, x)
        x = output.prev_sample
        assert x.dtype == output.pred_original_sample.dtype == dtype
    exactly = expected(lams, lams[0] * NOISE.initial(), noise_scale="ode", corrector=3)
    assert (x - exactly).abs().mean() < (0.02 if dtype == torch.float16 else 0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_step_gives_an_output_or_a_tuple(kind: Any) -> None:
    scheduler = kind()
    x = NOISE.initial().float()
    outputs = []
    for return_dict in (True, False):
        scheduler.set_timesteps(5)
        generator = torch.Generator().manual_seed(0)
        outputs.append(scheduler.step(0.1 * x, scheduler.timesteps[0], x, generator, return_dict=return_dict))
    output, pair = outputs
    assert output.prev_sample.shape == output.pred_original_sample.shape == x.shape
    assert torch.equal(output.prev_sample, pair[0])
    assert torch.equal(output.pred_original_sample, pair[1])
    assert not torch.equal(scheduler.step(0.1 * x, scheduler.timesteps[1], pair[0]).prev_sample, pair[0])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_timesteps_go_to_the_device(device: str) -> None:
    for kind in KINDS:
        scheduler = kind()
        scheduler.set_timesteps(5, device=device)
        assert scheduler.timesteps.device.type == device
        assert scheduler.sigmas.device.type == "cpu"


def test_what_a_pipeline_changes_in_the_state_remains() -> None:
    """An inpainting mask between steps: the corrector adds to the state it is handed."""
    scheduler = ERSDEScheduler(prediction_type="sample", corrector=3, noise_scale="ode")
    ends = []
    for change in (0.0, 1.0):
        scheduler.set_timesteps(5)
        x = NOISE.initial()
        for i, t in enumerate(scheduler.timesteps[:3]):
            x = scheduler.step(torch.sin(NOISE.step(i)), t, x + change * (i == 2)).prev_sample
        ends.append(x)
    alphas = (1 + scheduler._lams**2).rsqrt()
    kept = ERSDE(noise_scale="ode").tableau(scheduler._lams).r[2] / alphas[2] * alphas[3]
    torch.testing.assert_close(ends[1] - ends[0], kept * torch.ones_like(x), rtol=1e-9, atol=1e-9)


def test_thresholding_and_learned_variance() -> None:
    scheduler = ERSDEScheduler(
        prediction_type="sample", thresholding=True, dynamic_thresholding_ratio=0.5, sample_max_value=3
    )
    theirs = diffusers.DPMSolverMultistepScheduler(
        prediction_type="sample", thresholding=True, dynamic_thresholding_ratio=0.5, sample_max_value=3
    )
    output = 4 * NOISE.step(0).float()
    for size in (1.0, 0.3, 0.01):  # clamped at 3, in between, plain clipping
        scheduler.set_timesteps(5)
        x0 = scheduler.step(size * output, scheduler.timesteps[0], output).pred_original_sample
        torch.testing.assert_close(x0, theirs._threshold_sample(size * output))
    plain = ERSDEScheduler()
    results = []
    for extra in (output[:, :0], output):
        plain.set_timesteps(5)
        model_output = torch.cat([0.1 * output, extra], 1)
        results.append(
            plain.step(model_output, plain.timesteps[0], output, torch.Generator().manual_seed(0)).prev_sample
        )
    assert torch.equal(*results)
