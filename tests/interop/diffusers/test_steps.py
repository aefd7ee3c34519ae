"""What the three schedulers share: runs begin where their first timestep says, noise is added as diffusers' own do."""

from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from ersde_lit.interop.diffusers.levels import distinct  # noqa: E402
from ersde_lit.interop.diffusers.scheduler import (  # noqa: E402
    ERSDEEDMScheduler,
    ERSDEFlowMatchScheduler,
    ERSDEScheduler,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
STABLE_DIFFUSION: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLOSE = [0.9, 0.7, *(0.5 + k * 1e-9 for k in (3, 2, 1, 0)), 0.2]  # in float32 four of them are one
CROWDED: list[tuple[Any, dict[str, Any]]] = [
    *(
        (ERSDEScheduler(**STABLE_DIFFUSION, **{option: True}), {"num_inference_steps": n})
        for option in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
        for n in (20, 100, 700)
    ),
    (ERSDEScheduler(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True), {"num_inference_steps": 100}),
    (ERSDEScheduler(use_karras_sigmas=True, final_sigmas_type="sigma_min"), {"num_inference_steps": 100}),
    (ERSDEScheduler(), {"sigmas": [400.0, 300.0, 200.0, 1.0, 0.003, 0.002, 0.001, 0.0]}),  # beyond both ends
    (ERSDEScheduler(order=1), {"sigmas": [*CLOSE, 0.0]}),
    (ERSDEScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", order=1), {"sigmas": [*CLOSE, 0.0]}),
    (ERSDEEDMScheduler(order=1), {"sigmas": [*CLOSE, 0.0]}),
    (ERSDEFlowMatchScheduler(order=1), {"sigmas": CLOSE}),
    (ERSDEFlowMatchScheduler(shift=1e6, noise_scale="ode"), {"num_inference_steps": 50}),
    (ERSDEFlowMatchScheduler(), {"sigmas": [0.9, 0.8, 0.7, 0.6], "timesteps": [900, 700, 700, 700]}),
]


@pytest.mark.parametrize(
    ("scheduler", "levels"), CROWDED, ids=lambda of: type(of).__name__ if hasattr(of, "config") else str(of)
)
def test_a_run_begins_where_its_first_timestep_says(scheduler: Any, levels: dict[str, Any]) -> None:
    """Wherever it begins, it ends in the image: here the model knows that it is 0."""
    scheduler.set_timesteps(**levels)
    t = scheduler.timesteps
    assert (t.diff() < 0).all()
    if "timesteps" in levels:
        assert (t - torch.tensor(levels["timesteps"])).abs().max() < 1e-3
    crowd = [int(i) for i in t.diff().argsort(descending=True)[:3]]
    for begin in {0, 1, len(t) - 1, *crowd, *(i + 1 for i in crowd)}:
        for told in (False, True):
            scheduler.set_timesteps(**levels)  # one scheduler, again and again
            assert scheduler.index_for_timestep(t[begin]) == begin
            if told:
                scheduler.set_begin_index(begin)
            x = scheduler.add_noise(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), t[begin : begin + 1])
            lam = scheduler._lams[begin]
            assert x.flatten()[0].double() == pytest.approx(float(lam * scheduler.process.alpha_of_lam(lam)))
            for i, one in enumerate(t[begin:]):
                output = perfect(scheduler, x, begin + i)
                x = scheduler.step(output, one, x, torch.Generator().manual_seed(0)).prev_sample
            assert scheduler.step_index == len(t)
            torch.testing.assert_close(
                x.abs().max() * (scheduler.sigmas[-1] == 0), torch.tensor(0.0), rtol=0, atol=1e-3
            )


def perfect(scheduler: Any, x: Tensor, i: int) -> Tensor:
    """The output for which x0 is 0, whatever x."""
    lam = scheduler._lams[i]
    if isinstance(scheduler, ERSDEEDMScheduler):
        return -x * 0.5 / (lam * (lam**2 + 0.25).sqrt()).float()
    alpha = scheduler.process.alpha_of_lam(lam)
    return x / float(alpha * lam)


def test_timesteps_stay_integers_where_no_two_are_the_same() -> None:
    scheduler = ERSDEScheduler(**STABLE_DIFFUSION, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.dtype == torch.int64
    whole = scheduler.timesteps
    scheduler.set_timesteps(100)
    assert scheduler.timesteps.is_floating_point()
    assert scheduler.timesteps.diff().max() < -1e-3  # between the model's timesteps, not a rounding error apart
    theirs = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, use_karras_sigmas=True)
    theirs.set_timesteps(100)
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps.float(), rtol=0, atol=0.1)
    scheduler.set_timesteps(timesteps=scheduler.timesteps)
    assert len(scheduler.timesteps) == 100
    torch.testing.assert_close(scheduler.sigmas[:-1], theirs.sigmas[:-1], rtol=1e-3, atol=0)
    scheduler.set_timesteps(20)
    assert torch.equal(scheduler.timesteps, whole)


@pytest.mark.parametrize("begin", [0, 89, 90, 91, 92, 99])
def test_a_run_begun_anywhere_ends_where_dpm_solver_does(begin: int) -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(**STABLE_DIFFUSION, use_karras_sigmas=True, solver_order=1)
    ours = ERSDEScheduler.from_config(theirs.config, order=1, noise_scale="ode")
    ends = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(100)
        if scheduler is theirs:
            scheduler.set_begin_index(begin)  # else it begins at the second of two the same
        x0, eps = torch.full((1, 1, 2, 2), 0.3), torch.linspace(-1, 1, 4).view(1, 1, 2, 2)
        x = scheduler.add_noise(x0, eps, scheduler.timesteps[begin : begin + 1])
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(0.9 * eps + 0.1 * x, t, x).prev_sample
        ends.append(x)
        assert scheduler.step_index == 100
    torch.testing.assert_close(*ends, rtol=0, atol=2e-4)


def test_distinct_moves_the_same_apart_and_nothing_else() -> None:
    t = torch.tensor([999.0, 999.0, 999.0, 3.0, 0.0, 0.0, -1.0, -1.0])
    apart = distinct(t)
    assert (apart.diff() < 0).all()
    torch.testing.assert_close(apart, t, rtol=1e-6, atol=1e-6)
    assert apart[[2, 3, 5, 7]].tolist() == t[[2, 3, 5, 7]].tolist()
    one = torch.tensor([1.0 + 2**-23, 1.0, 1.0])
    assert (distinct(one).diff() < 0).all()
    assert distinct(t[[0, 3, 4]]) is not None
    with pytest.raises(ValueError, match="descending"):
        distinct(torch.tensor([1.0, 2.0]))


X0, EPS = torch.linspace(-1, 1, 36).view(3, 3, 2, 2), torch.linspace(2, -2, 36).view(3, 3, 2, 2).cos()
VP_TWINS = [diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler]


@pytest.mark.parametrize("twin", VP_TWINS)
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_noise_is_added_at_any_trained_timestep(twin: Any, spacing: str) -> None:
    theirs = twin(**STABLE_DIFFUSION, timestep_spacing=spacing)
    ours = ERSDEScheduler.from_config(theirs.config)
    trained = torch.tensor([998, 3, 501])
    before = diffusers.DDPMScheduler(**STABLE_DIFFUSION).add_noise(X0, EPS, trained)  # DPM-Solver's not, before a run
    torch.testing.assert_close(ours.add_noise(X0, EPS, trained), before, rtol=0, atol=1e-5)
    ours.set_timesteps(7)
    torch.testing.assert_close(ours.add_noise(X0, EPS, trained), before, rtol=0, atol=1e-5)
    again = ours.timesteps[[1, 3, 5]]
    theirs.set_timesteps(7)
    if twin is not diffusers.DPMSolverMultistepScheduler or (theirs.timesteps == ours.timesteps).all():
        torch.testing.assert_close(ours.add_noise(X0, EPS, again), theirs.add_noise(X0, EPS, again), rtol=0, atol=1e-5)
    for wrong in (1000, -1):
        with pytest.raises(ValueError, match="from 0 to 999"):
            ours.add_noise(X0, EPS, torch.tensor([3, wrong, 3]))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ERSDEEDMScheduler(), diffusers.EDMEulerScheduler()),
        (ERSDEFlowMatchScheduler(shift=3.0), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
    ],
)
def test_noise_is_added_at_a_trained_timestep_between_runs(ours: Any, theirs: Any) -> None:
    """A trainer's that samples in between, and goes on with the same scheduler."""
    add = "scale_noise" if hasattr(theirs, "scale_noise") else "add_noise"
    trained = theirs.timesteps[[0, 300, 998]]
    given = (X0, trained, EPS) if add == "scale_noise" else (X0, EPS, trained)
    before = getattr(theirs, add)(*given)
    for begin in (None, 0, 4):
        torch.testing.assert_close(getattr(ours, add)(*given), before, rtol=1e-5, atol=1e-5)
        ours.set_timesteps(6)
        if begin is not None:
            ours.set_begin_index(begin)
        for t in ours.timesteps[begin or 0 :]:
            ours.step(X0, t, X0)
        torch.testing.assert_close(getattr(ours, add)(*given), before, rtol=1e-5, atol=1e-5)
    for wrong in (1e4, -1e4):
        with pytest.raises(ValueError, match="time"):
            ours.add_noise(X0, EPS, torch.tensor([wrong, wrong, wrong]))


def test_velocity_is_ddpms() -> None:
    theirs = diffusers.DDPMScheduler(**STABLE_DIFFUSION)
    ours = ERSDEScheduler.from_config(theirs.config)
    t = torch.tensor([998, 3, 501])
    ours.set_timesteps(5)
    torch.testing.assert_close(ours.get_velocity(X0, EPS, t), theirs.get_velocity(X0, EPS, t), rtol=0, atol=1e-5)
    flow = ERSDEScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    assert torch.equal(flow.get_velocity(X0, EPS, t), EPS - X0)


CLIPPED: list[dict[str, Any]] = [
    {},
    {"clip_sample": True, "clip_sample_range": 0.4},
    {"clip_sample": False},
    {"clip_sample": True, "thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.7},
    {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5},
]


@pytest.mark.parametrize("twin", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", CLIPPED, ids=str)
def test_x0_is_clipped_as_theirs(twin: Any, prediction: str, clip: dict[str, Any], tmp_path: Any) -> None:
    theirs = twin(prediction_type=prediction, **clip)
    theirs.save_pretrained(tmp_path)
    for ours in (ERSDEScheduler.from_config(theirs.config), ERSDEScheduler.from_pretrained(tmp_path)):
        ours.set_timesteps(5)
        theirs.set_timesteps(1000)
        t = ours.timesteps[1]
        pair = [one.step(2 * X0, t, 1.5 * EPS).pred_original_sample for one in (ours, theirs)]
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_x0_is_not_clipped_unless_asked_for() -> None:
    assert not ERSDEScheduler().config.clip_sample
    for theirs in (diffusers.CogVideoXDDIMScheduler(), diffusers.CogVideoXDPMScheduler(clip_sample=True)):
        ours = ERSDEScheduler.from_config(theirs.config)  # of latents, which they never clip
        ours.set_timesteps(5)
        assert ours.step(9 * EPS, ours.timesteps[0], EPS).pred_original_sample.abs().max() > 2
    assert ERSDEScheduler.from_config(diffusers.DDPMScheduler().config).config.clip_sample
    assert not ERSDEScheduler.from_config(diffusers.DDPMScheduler().config, clip_sample=False).config.clip_sample
