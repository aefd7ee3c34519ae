"""Schedules and steps of tokens are FlowMatchEulerDiscreteScheduler's."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from ersde_lit.interop.diffusers.scheduler import ERSDEFlowMatchScheduler  # noqa: E402
from ersde_lit.solvers import ERSDE  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
DYNAMIC = {"use_dynamic_shifting": True}
EULER = diffusers.FlowMatchEulerDiscreteScheduler


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shift": 3.0},
        DYNAMIC,
        {**DYNAMIC, "time_shift_type": "linear"},
        {**DYNAMIC, "shift_terminal": 0.1},
        {"use_karras_sigmas": True, "shift": 2.0},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
    ],
    ids=str,
)
def test_all_that_set_timesteps_takes_together(config: dict[str, Any]) -> None:
    """As CogView4 and GLM-Image give it too; but the first level, which theirs have at 1."""
    theirs = EULER(**config)
    ours = ERSDEFlowMatchScheduler.from_config(theirs.config)
    ts = np.linspace(1000, 1, 13)[:-1].astype(np.int64).astype(np.float32)
    every = {"num_inference_steps": 12, "sigmas": ts / 1000, "timesteps": ts}
    for names in itertools.chain(*(itertools.combinations(every, k) for k in (1, 2, 3))):
        for mu in (0.4, 1.5) if "use_dynamic_shifting" in config else (None, 1.5):
            for scheduler in (ours, theirs):
                scheduler.set_timesteps(**{name: every[name] for name in names}, mu=mu)
            torch.testing.assert_close(ours.sigmas[1:], theirs.sigmas[1:], rtol=1e-5, atol=1e-6)
            first = 0 if "timesteps" in names else 1
            torch.testing.assert_close(ours.timesteps[first:], theirs.timesteps[first:], rtol=1e-5, atol=1e-3)
            assert max(0.999, float(ours.sigmas[1])) <= float(ours.sigmas[0]) < 1
            assert ours.num_inference_steps == len(ours.timesteps) == 12
    for wrong in (
        {"num_inference_steps": 11, "sigmas": ts / 1000},
        {"num_inference_steps": 11, "timesteps": ts},
        {"sigmas": ts[1:] / 1000, "timesteps": ts},
        {},
    ):
        with pytest.raises(ValueError, match="of one length"):
            ours.set_timesteps(**wrong, mu=1.5)
    with pytest.raises(ValueError, match="timesteps must be descending"):
        ours.set_timesteps(sigmas=ts / 1000, timesteps=ts[::-1].copy(), mu=1.5)


def test_a_run_with_told_timesteps_is_found_by_them() -> None:
    """CogView4's: the model is told whole timesteps, unshifted, and steps between shifted levels."""
    ours = ERSDEFlowMatchScheduler(**DYNAMIC, order=1, noise_scale="ode")
    theirs = EULER(**DYNAMIC)
    ts = np.linspace(1000, 1, 9)[:-1].astype(np.int64)
    x0, eps = torch.full((1, 4, 2, 2), 0.3), torch.linspace(-1, 1, 16).view(1, 4, 2, 2)
    ends = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=ts, sigmas=ts / 1000, mu=1.5)
        x = scheduler.scale_noise(x0, scheduler.timesteps[2:3], eps)
        for t in scheduler.timesteps[2:]:
            x = scheduler.step(eps - 0.5 * x, t, x).prev_sample
        assert scheduler.step_index == len(ts)
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 3, generator=generator), torch.randn(2, 5, 3, generator=generator)


CONDITION = torch.tensor([[0.0, 1.0, 0.0, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])  # 1: clean, 0.4: noise of t = 0.6


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("given", ["num_inference_steps", "sigmas"])
def test_tokens_step_as_flow_match_euler_has_them(shift: float, given: str) -> None:
    """The loop of LTX's pipeline with a condition, from a t below 1."""
    ours = ERSDEFlowMatchScheduler(shift=shift, order=1, noise_scale="ode")
    theirs = EULER(shift=shift)
    levels = {"num_inference_steps": 9} if given == "num_inference_steps" else {"sigmas": [0.95, 0.7, 0.44, 0.2]}
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(**levels)
    start, target = tokens()
    theirs.sigmas[0], theirs.timesteps[0] = ours.sigmas[0], ours.timesteps[0]  # else 1, where ours are a little below
    xs = [start, start]
    for t in theirs.timesteps:
        for k, scheduler in enumerate((ours, theirs)):
            told = torch.minimum(t.expand(2, 5), (1 - CONDITION) * 1000)
            velocity = torch.sin(3 * xs[k]) - target
            stepped = scheduler.step(-velocity, t, xs[k], per_token_timesteps=told, return_dict=False)[0]
            xs[k] = torch.where((t / 1000 - 1e-6 < 1 - CONDITION).unsqueeze(-1), stepped, xs[k])
        torch.testing.assert_close(xs[0], xs[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(xs[0][0, 1], start[0, 1])
    assert ours.step_index == len(theirs.timesteps)


@pytest.mark.parametrize("options", [{}, {"noise_scale": "sde", "order": 2, "corrector": 2}, {"paper": True}])
def test_tokens_step_by_rows_of_their_own_levels(options: dict[str, Any]) -> None:
    """With noise too; a perfect model's tokens end in x0 whatever their levels."""
    scheduler = ERSDEFlowMatchScheduler(**options)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(1)
    start, x0 = tokens()
    noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    told = torch.minimum(scheduler.timesteps[1].expand(2, 5), (1 - CONDITION) * 1000)
    t = (told / 1000).unsqueeze(-1)
    output = (x0 - start) / t.clamp(min=1e-9)
    stepped = scheduler.step(output, told, start, variance_noise=noise, per_token_timesteps=told)
    levels = scheduler.sigmas.double()
    for b, k in itertools.product(range(2), range(5)):
        now = float(told[b, k]) / 1000
        if now == 0:
            assert torch.equal(stepped.prev_sample[b, k], start[b, k])
            continue
        after = float(levels[levels < now - 1e-6][0])
        row = ERSDE(**options).tableau(torch.tensor([now / (1 - now), after / (1 - after)], dtype=torch.float64))
        y = row.r[0] * start[b, k] / (1 - now) + row.c[0, 0] * x0[b, k] + row.b[0] * noise[b, k]
        torch.testing.assert_close(stepped.prev_sample[b, k], ((1 - after) * y).float(), rtol=1e-4, atol=1e-4)
    noisy = told > 0
    torch.testing.assert_close(stepped.pred_original_sample[noisy], x0[noisy], rtol=1e-4, atol=1e-5)

    x = stepped.prev_sample
    for i, one in enumerate(scheduler.timesteps[2:], start=2):
        told = torch.minimum(one.expand(2, 5), (1 - CONDITION) * 1000)
        output = (x0 - x) / (told / 1000).clamp(min=1e-9).unsqueeze(-1)
        x = scheduler.step(output, one, x, torch.Generator(), per_token_timesteps=told).prev_sample
        assert scheduler.step_index == i + 1
    torch.testing.assert_close(x[noisy], x0[noisy], rtol=1e-5, atol=1e-5)
    assert torch.equal(x[~noisy], start[~noisy])


@pytest.mark.parametrize("options", [{"order": 1, "noise_scale": "ode"}, {}, {"corrector": 3}])
@pytest.mark.parametrize("condition", [False, True])
def test_tokens_on_the_schedule_step_as_a_whole(options: dict[str, Any], condition: bool) -> None:
    """By all rows of the table, whatever others do. Pipelines give (B, 1) without a condition."""
    scheduler = ERSDEFlowMatchScheduler(**options)
    start, target = tokens()
    ends = []
    for sign, by_token in ((1, False), (-1, True)):
        scheduler.set_timesteps(5)
        x, generator = start, torch.Generator().manual_seed(1)
        for t in scheduler.timesteps:
            told = torch.minimum(t.expand(2, 5), (1 - CONDITION) * 1000) if condition else t.expand(2, 1)
            per_token = {"per_token_timesteps": told} if by_token else {}
            x = scheduler.step(sign * (torch.sin(x) - target), t, x, generator, **per_token).prev_sample
        ends.append(x[CONDITION == 0] if condition else x)
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps[:2]:
        start = scheduler.step(start.half(), t, start.half(), per_token_timesteps=t.expand(2, 1)).prev_sample
        assert start.dtype == torch.float16


def test_tokens_of_given_timesteps_are_those_of_the_sigmas() -> None:
    """As LTX's pipelines set them: timesteps 1000 sigmas, from 1000 on."""
    sigmas = [1.0, 0.8, 0.5, 0.2]
    start, target = tokens()
    ends = []
    for levels in ({"sigmas": sigmas}, {"timesteps": [1000 * sigma for sigma in sigmas]}):
        scheduler = ERSDEFlowMatchScheduler(noise_scale="ode")
        scheduler.set_timesteps(**levels)
        x = start
        for t in scheduler.timesteps:
            told = torch.minimum(t.expand(2, 5), (1 - CONDITION) * 1000)
            stepped = scheduler.step(torch.sin(x) - target, t, x, per_token_timesteps=told).prev_sample
            x = torch.where((told < t - 1e-3).unsqueeze(-1), x, stepped)
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


def test_a_token_that_joins_the_schedule_has_no_history() -> None:
    """Its condition has the noise of a level on the way: from there on its steps are of order 1."""
    start, target = tokens()
    ends = []
    for order in (1, 3):
        scheduler = ERSDEFlowMatchScheduler(order=order, noise_scale="ode")
        scheduler.set_timesteps(8)
        x = start
        for t in scheduler.timesteps:
            told = torch.minimum(
                t.expand(2, 5), scheduler.timesteps[3] * CONDITION.clamp(max=1) + 1000 * (1 - CONDITION)
            )
            stepped = scheduler.step(torch.sin(x) - target, t, x, per_token_timesteps=told).prev_sample
            x = torch.where((told < t - 1e-3).unsqueeze(-1), x, stepped)
        ends.append(x)
    joined = CONDITION == 1
    torch.testing.assert_close(ends[0][joined], ends[1][joined])
    assert (ends[0] - ends[1])[CONDITION == 0].abs().max() > 1e-3


def test_refuses_tokens_in_one_line() -> None:
    scheduler = ERSDEFlowMatchScheduler(shift=3.0)
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="set_timesteps must be called before step"):
        scheduler.step(x, 900.0, x, per_token_timesteps=torch.zeros(2, 5))
    scheduler.set_timesteps(4)
    for wrong, message in (
        (torch.zeros(2, 4), r"shape \[2, 5\].*not \[2, 4\]"),
        (torch.zeros(2, 5, 1), "shape"),
        (torch.full((2, 5), -1.0), "from 0 to 1000"),
        (torch.full((2, 5), 1001.0), "from 0 to 1000"),
        (torch.full((2, 5), float("nan")), "from 0 to 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=wrong)
    scheduler.set_timesteps(timesteps=[900.0, 500.0])  # told unshifted
    with pytest.raises(ValueError, match="sigmas alone"):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=torch.zeros(2, 5))
