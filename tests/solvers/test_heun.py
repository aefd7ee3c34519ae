import math
import warnings
from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ersde_lit.solvers import grids
from ersde_lit.solvers.heun import Heun
from ersde_lit.solvers.loop import NFECounter
from ersde_lit.solvers.oracles import BasisNoise, Gaussian, output_law


def test_without_churn_it_is_diffusers(rivals) -> None:
    diffusers = pytest.importorskip("diffusers")
    lams = grids.edm(10)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # numpy functions of tensors
        scheduler = diffusers.HeunDiscreteScheduler(prediction_type="sample", clip_sample=False)
        scheduler.set_timesteps(10)
    scheduler.sigmas = torch.cat([lams[:1], lams[1:-1].repeat_interleave(2), lams[-1:]])
    y = rivals.start(lams)  # their x is ours
    for t, lam in zip(scheduler.timesteps, torch.cat([lams[:1], lams[1:-1].repeat_interleave(2)]), strict=True):
        y = scheduler.step(rivals.denoiser(y, lam), t, y).prev_sample
    torch.testing.assert_close(Heun()(rivals.denoiser, rivals.noise, 19), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}, {"churn": 3.0}, {"churn": 0.0}]
)
def test_is_algorithm_2(rivals, options) -> None:
    lams = grids.edm(12)
    churn, s_noise = options["churn"], options.get("s_noise", 1.0)
    x = rivals.start(lams)
    for i, (t, t_next) in enumerate(pairwise(lams)):
        inside = options.get("s_min", 0) <= t <= options.get("s_max", math.inf)
        t_hat = t + (min(churn / 12, math.sqrt(2) - 1) if inside else 0) * t
        x_hat = x + (t_hat**2 - t**2).sqrt() * s_noise * rivals.noise.step(i)
        d = (x_hat - rivals.denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next > 0:
            d_prime = (x - rivals.denoiser(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d / 2 + d_prime / 2)
    torch.testing.assert_close(Heun(**options)(rivals.denoiser, rivals.noise, 23), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("nfe", "calls"), [(1, 1), (2, 1), (3, 3), (10, 9), (20, 19), (50, 49), (51, 51)])
def test_calls(rivals, nfe, calls) -> None:
    counter, seen = NFECounter(rivals.denoiser), []
    Heun()(counter, rivals.noise, nfe, callback=lambda i, lam, y, x0: seen.append(i))
    assert Heun().calls(nfe) == counter.nfe == calls
    assert seen == list(range(calls))


def test_denoiser_gets_levels_labels_and_the_callback_what_it_saw(rivals) -> None:
    labels, seen = torch.arange(8), []

    def denoiser(y: Tensor, lam: Tensor, labels: Tensor) -> Tensor:
        assert labels.tolist() == list(range(8))
        assert lam.ndim == 0
        seen.append((lam, y, x0 := rivals.denoiser(y, lam)))
        return x0

    called = []
    Heun(churn=4)(denoiser, rivals.noise, 9, labels, callback=lambda i, *rest: called.append(rest))
    assert all(a is b for s, c in zip(seen, called, strict=True) for a, b in zip(s, c, strict=True))
    lams = grids.edm(5)
    levels = torch.stack([lams[:-1] * math.sqrt(2), lams[1:]], 1).flatten()[:-1]
    torch.testing.assert_close(torch.stack([lam for lam, _, _ in seen]), levels)


class _Start:
    """Starts from `y`, whatever the grid, and has no noise to give."""

    def __init__(self, y: Tensor):
        self.y = y

    def initial(self) -> Tensor:
        return self.y

    def step(self, i: int) -> Tensor:
        raise AssertionError("noise was drawn")


def test_order_2_and_no_noise_without_churn() -> None:
    """Against the exact solution of the ODE on one Gaussian, from 5 to 0."""
    data = Gaussian(torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.4, dtype=torch.float64))
    errors = []
    for n in (32, 64, 128, 256):
        lams = torch.linspace(5, 0, n + 1, dtype=torch.float64)
        y = Heun(grid=lambda n, lams=lams: lams)(data, _Start(data.marginal_std(lams[0])[None] / 5), 2 * n - 1)
        errors.append((y - 0.4).abs().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([2, 2, 2], abs=0.15)


@pytest.mark.parametrize("churn", [0.0, 10.0, 80.0])
def test_churn_keeps_the_marginal(churn) -> None:
    """The exact law of the output is the data's as steps grow, however much churn; not so with the wrong noise."""
    data = Gaussian.spectrum(4)
    grid = partial(grids.edm, lam_min=1e-3, lam_max=200.0)

    def error(n: int, s_noise: float = 1.0) -> float:
        sampler = Heun(grid, churn=churn, s_noise=s_noise)
        _, std = output_law(lambda y, noise: sampler(data, noise, 2 * n - 1), data.mean, data.std, n)
        return (std / data.std - 1).abs().max().item()

    assert error(256) < 0.01
    assert error(256) < error(64) / 2
    assert churn == 0 or error(256, s_noise=1.1) > 0.05


def test_churn_raises_the_noise_to_its_level() -> None:
    """The state at the first call has std l (1 + gamma) exactly; rows of the batch are its independent sources."""
    seen = []
    noise = BasisNoise(8, torch.zeros(1, dtype=torch.float64))
    Heun(churn=2)(lambda y, lam: y * 0, noise, 9, callback=lambda i, lam, y, x0: seen.append((lam, y)))
    lam, y = seen[0]
    assert lam == pytest.approx(80 * 1.4)
    assert y.square().sum().sqrt() == pytest.approx(80 * 1.4)


@pytest.mark.parametrize("levels", [None, torch.logspace(-2, 2, 100, dtype=torch.float64)])
def test_raised_levels_stay_in_range_and_on_levels(levels) -> None:
    seen: Counter[float] = Counter()

    class Discrete:
        lam_min, lam_max = 0.01, 100.0

        def __init__(self) -> None:
            self.levels = levels

        def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
            seen[lam.item()] += 1
            return torch.zeros_like(y)

    noise = _Start(torch.ones(1, 2, dtype=torch.float64))
    noise.step = lambda i: torch.zeros(1, 2, dtype=torch.float64)  # type: ignore[method-assign]
    Heun(partial(grids.edm, lam_max=500.0), churn=1000.0)(Discrete(), noise, 19)
    assert levels is None or set(seen) <= set(levels.tolist())
    assert max(seen) <= 100 + 1e-9
    assert max(seen.values()) <= 2
    assert len(seen) > 15  # raised and unraised levels differ


def test_float32_state_and_half_precision_denoiser(rivals) -> None:
    start = _Start(rivals.noise.initial().float())
    y = Heun()(lambda y, lam: rivals.denoiser(y.double(), lam.double()).half(), start, 19)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), Heun()(rivals.denoiser, rivals.noise, 19), rtol=0, atol=0.02)


@pytest.mark.parametrize("bad", [-1, math.inf, math.nan, "a", None, True])
@pytest.mark.parametrize("name", ["churn", "s_noise"])
def test_strengths_are_finite(name: str, bad) -> None:
    with pytest.raises(ValueError, match=f"{name} of Heun"):
        Heun(**{name: bad})


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (2, 1), (0, math.nan), (math.nan, 1), ("0", 1)])
def test_churn_is_in_an_interval(low, high) -> None:
    with pytest.raises(ValueError, match="0 <= s_min <= s_max"):
        Heun(s_min=low, s_max=high)


def test_refuses_what_it_would_broadcast(rivals) -> None:
    with pytest.raises(ValueError, match=r"x0 must have the shape of y, \[8, 4\], not \[8, 1\]"):
        Heun()(lambda y, lam: y[:, :1], rivals.noise, 5)
    noise = _Start(rivals.noise.initial())
    noise.step = lambda i: torch.ones(1, 4)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"noise must have the shape of y, \[8, 4\], not \[1, 4\]"):
        Heun(churn=10)(lambda y, lam: y / 2, noise, 5)


def test_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="end in 0"):
        Heun(partial(grids.edm, zero=False))(lambda y, lam: y, _Start(torch.ones(1, 1)), 5)
    with pytest.raises(ValueError, match="number of calls"):
        Heun().calls(0)


def test_names_the_step_where_x0_is_not_finite(rivals) -> None:
    def breaks(y: Tensor, lam: Tensor) -> Tensor:
        return y * (math.nan if lam < 1 else 0)

    lams = grids.edm(10)
    first = int((lams[1:] < 1).int().argmax())  # the step at whose end lam falls below 1
    with pytest.raises(FloatingPointError, match=f"step {first} "):
        Heun()(breaks, rivals.noise, 19)
