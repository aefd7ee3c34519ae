import copy
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ersde_lit.solvers import DDIM, ERSDE, IPNDM, NFECounter, SeededNoise, Tableau, grids, sample

EVERYTHING = ERSDE(3, "er_sde_5", corrector=3)  # noise, history and corrector


def shrink(y: Tensor, lam: Tensor) -> Tensor:
    return torch.tanh(y / (1 + lam**2))


class ListNoise(list):
    def step(self, i: int) -> Tensor:
        return self[i]


def slow_sample(denoiser, tableau: Tableau, y: Tensor, noise: ListNoise) -> Tensor:
    """The formula of a table, read aloud."""
    history: list[Tensor] = []
    n = len(tableau.r)
    before = y
    for i in range(n):
        x0 = denoiser(y, (tableau.lams if tableau.calls is None else tableau.calls)[i])
        history.append(x0 if tableau.history == "x0" else (y - x0) / tableau.lams[i])
        if i and tableau.corrector is not None and tableau.corrector[i - 1].abs().sum() > 0:
            y = tableau.r[i - 1] * before + tableau.b[i - 1] * noise[i - 1]
            for j in range(min(tableau.corrector.shape[1], i + 1)):
                y = y + tableau.corrector[i - 1, j] * history[i - j]
        before = y
        y = tableau.r[i] * y + tableau.b[i] * noise[i]
        for j in range(min(tableau.c.shape[1], i + 1)):
            y = y + tableau.c[i, j] * history[i - j]
    return y


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 4), st.sampled_from(["x0", "d"]), st.integers(0, 2**31 - 1))
def test_runs_any_table(n: int, k: int, m: int, history: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.3

    corrector = random(n, m) * (random(n, 1) > 0) if m else None  # some rows of zeros
    b = random(n).relu()
    calls = random(n) + 0.5 if seed % 2 else None
    tableau = Tableau(grids.log_uniform(n, 0.1, 3, zero=False), random(n), random(n, k), b, corrector, history, calls)  # type: ignore[arg-type]
    y, noise = random(2, 3), ListNoise(random(n, 2, 3))
    torch.testing.assert_close(
        sample(shrink, tableau, y, noise=noise), slow_sample(shrink, tableau, y, noise), rtol=1e-12, atol=1e-12
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.sampled_from(["x0", "d"]), st.integers(0, 2**31 - 1))
def test_noise_with_a_mean_is_that_without_in_a_moving_frame(n: int, k: int, m: int, history: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.3

    y, noise, mean, c = random(2, 3), ListNoise(random(n, 2, 3)), random(3), random(n, k)
    corrector = random(n, m) if m else None
    for i in range(n):  # rows as tables have them: none reaches behind the start
        c[i, i + 1 :] = 0
        if corrector is not None:
            corrector[i, i + 2 :] = 0
    if corrector is not None and history == "d":  # as much of the mean as the row keeps
        corrector[:, 0] += c.sum(1) - corrector.sum(1)
    lams = grids.log_uniform(n, 0.1, 3, zero=False)
    tableau = Tableau(lams, random(n), c, random(n).relu(), corrector, history)  # type: ignore[arg-type]

    moving = sample(lambda y, lam: shrink(y + lam * mean, lam), tableau, y - lams[0] * mean, noise=noise)
    torch.testing.assert_close(
        sample(shrink, tableau, y, noise=noise, mean=mean), moving + lams[-1] * mean, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_fewer_steps_than_history(n: int) -> None:
    tableau = ERSDE(6, corrector=5).tableau(grids.edm(n))
    y, noise = torch.randn(2, 3).double(), ListNoise(torch.randn(n, 2, 3).double())
    torch.testing.assert_close(sample(shrink, tableau, y, noise=noise), slow_sample(shrink, tableau, y, noise))


@pytest.mark.parametrize("solver", [DDIM(), EVERYTHING, IPNDM()])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_calls_once_a_step(solver, n: int) -> None:
    counter = NFECounter(shrink)
    tableau = solver.tableau(grids.edm(n))
    sample(counter, tableau, torch.randn(1, 2))
    assert counter.nfe == n == tableau.nfe


def test_ends_in_the_last_x0() -> None:
    seen: list[Tensor] = []
    out = sample(
        shrink, EVERYTHING.tableau(grids.edm(5)), torch.randn(4, 3), callback=lambda *state: seen.append(state[3])
    )
    assert torch.equal(out, seen[-1])


def test_draws_noise_only_where_there_is_any() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def step(self, i: int) -> Tensor:
            self.steps.append(i)
            return torch.ones(2)

    tableau = ERSDE(2, "sde").tableau(grids.edm(4))
    for b, steps in ((tableau.b, [0, 1, 2]), (tableau.b * 0, []), (tableau.b * torch.tensor([0, 1, 0, 1]), [1])):
        recorder = Recorder()
        sample(shrink, tableau._replace(b=b), torch.ones(2), noise=recorder)
        assert recorder.steps == steps


def test_without_noise_given_draws_from_the_global_generator() -> None:
    tableau = ERSDE(1, "sde").tableau(grids.edm(3))
    torch.manual_seed(5)
    z = ListNoise(torch.randn(2) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(sample(shrink, tableau, torch.ones(2)), sample(shrink, tableau, torch.ones(2), noise=z))


def test_an_image_does_not_depend_on_its_batch() -> None:
    tableau, shape = EVERYTHING.tableau(grids.edm(8)), (3, 4, 5)

    def run(seeds: list[int]) -> Tensor:
        noise = SeededNoise(seeds, shape)
        return sample(shrink, tableau, 80 * noise.initial(), noise=noise)

    whole = run([7, 3, 11, 0, 5])
    for k, seed in enumerate([7, 3, 11, 0, 5]):
        torch.testing.assert_close(run([seed])[0], whole[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (0, 3, 8, 8), (2, 1, 4, 4), (2, 3, 2, 2, 2)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    y = torch.randn(shape)
    out = sample(shrink, EVERYTHING.tableau(grids.edm(5)), y)
    assert out.shape == y.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", [EVERYTHING, IPNDM()])
def test_dtypes(solver, dtype: torch.dtype, output: torch.dtype) -> None:
    state = torch.float64 if dtype == torch.float64 else torch.float32

    def denoiser(y: Tensor, lam: Tensor) -> Tensor:
        assert y.dtype == lam.dtype == state
        assert lam.ndim == 0
        return shrink(y, lam).to(output)

    assert sample(denoiser, solver.tableau(grids.edm(4)), torch.ones(2, 3, dtype=dtype)).dtype == state


def test_keeps_double_precision() -> None:
    tableau = ERSDE(3, "ode").tableau(grids.edm(6))
    y = torch.rand(5, dtype=torch.float64)
    expected = slow_sample(shrink, tableau, y, ListNoise([torch.zeros(5).double()] * 6))
    torch.testing.assert_close(sample(shrink, tableau, y), expected, rtol=1e-14, atol=1e-15)


def test_leaves_the_callers_state_alone() -> None:
    y = torch.ones(2, 3)
    sample(lambda y, lam: y, EVERYTHING.tableau(grids.edm(5)), y)  # which returns its very input
    assert torch.equal(y, torch.ones(2, 3))


def test_a_denoiser_may_reuse_its_output() -> None:
    buffer = torch.empty(2, 3)
    tableau = ERSDE(3, "ode", corrector=3).tableau(grids.edm(6))
    y = torch.randn(2, 3)
    out = sample(lambda y, lam: buffer.copy_(shrink(y, lam)), tableau, y)
    assert torch.equal(out, sample(shrink, tableau, y))


def test_labels_are_handed_on_only_if_given() -> None:
    labels = torch.tensor([1, 2])
    tableau = DDIM().tableau(grids.edm(2))
    sample(lambda y, lam: y, tableau, torch.ones(2), labels=None)
    seen = []
    sample(lambda y, lam, labels: seen.append(labels) or y, tableau, torch.ones(2), labels=labels)
    assert seen == [labels, labels] or all(label is labels for label in seen)


def test_callback_sees_each_evaluation() -> None:
    tableau = EVERYTHING.tableau(grids.edm(6))
    states: list[tuple[int, Tensor, Tensor, Tensor]] = []
    sample(shrink, tableau, torch.randn(2, 3).double(), callback=lambda *state: states.append(state))
    assert [i for i, *_ in states] == list(range(6))
    for i, lam, y, x0 in states:
        assert lam == tableau.lams[i]
        assert torch.equal(x0, shrink(y, lam))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_names_the_step_that_is_not_finite(bad: float, at: int) -> None:
    calls = 0

    def denoiser(y: Tensor, lam: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        x0 = shrink(y, lam)
        if calls - 1 >= at:
            x0[-1, -1] = bad
        return x0

    lams = grids.edm(6)
    with pytest.raises(FloatingPointError, match=rf"step {at} \(lam = {lams[at]:.6g}\)"):
        sample(denoiser, DDIM().tableau(lams), torch.randn(2, 3))


@pytest.mark.parametrize("history", ["x0", "d"])
@pytest.mark.parametrize(("shape", "of_y"), [((2, 1), (2, 3)), ((5, 3), (1, 3)), ((3,), (2, 3)), ((), (2, 3))])
def test_an_x0_that_would_be_broadcast_is_refused(history: str, shape, of_y) -> None:
    solver = DDIM() if history == "x0" else IPNDM()
    with pytest.raises(ValueError, match=re.escape(f"x0 must have the shape of y, {[*of_y]}, not {[*shape]}")):
        sample(lambda y, lam: torch.zeros(shape), solver.tableau(grids.edm(3)), torch.ones(of_y))


@pytest.mark.parametrize("shape", [(1, 3), (3,), (2, 1)])
def test_noise_that_would_be_broadcast_is_refused(shape) -> None:
    class Shared:
        def step(self, i: int) -> Tensor:
            return torch.ones(shape)

    with pytest.raises(ValueError, match=re.escape(f"noise must have the shape of y, [2, 3], not {[*shape]}")):
        sample(shrink, DDIM(1).tableau(grids.edm(3)), torch.ones(2, 3), noise=Shared())


def test_half_precision_sums_do_not_overflow() -> None:
    sample(lambda y, lam: torch.full_like(y, 6e4, dtype=torch.float16), DDIM().tableau(grids.edm(2)), torch.ones(64))


class NoSync(TorchDispatchMode):
    """Forbids, while `armed`, what waits for a device: numbers read off tensors, and transfers."""

    armed = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = func.name() in ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero")
        assert not (self.armed and waits), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", [EVERYTHING, IPNDM()])
def test_nothing_waits_for_the_device(solver) -> None:
    calls = 0
    with NoSync() as mode:

        def denoiser(y: Tensor, lam: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            mode.armed = calls < 8  # from the first call to the last
            return shrink(y, lam)

        noise = SeededNoise([1, 2], (3, 4))
        sample(denoiser, solver.tableau(grids.edm(8)), 80 * noise.initial(), noise=noise)
    assert calls == 8


def test_under_inference_mode_and_with_gradients() -> None:
    tableau = ERSDE(3, "ode", corrector=3).tableau(grids.edm(5))
    with torch.inference_mode():
        out = sample(shrink, tableau, torch.ones(2, 3))
    y = torch.ones(2, 3, requires_grad=True)
    again = sample(shrink, tableau, y)
    assert torch.equal(out, again)
    again.sum().backward()
    assert y.grad is not None
    assert y.grad.abs().sum() > 0


def test_a_compiled_denoiser_is_compiled_once() -> None:
    from torch._dynamo.testing import CompileCounter

    compiler = CompileCounter()
    tableau = EVERYTHING.tableau(grids.edm(6))
    y, noise = 80 * torch.randn(2, 3), SeededNoise([1, 2], (3,))
    compiled = torch.compile(shrink, backend=compiler)
    out = sample(compiled, tableau, y, noise=noise)
    torch.testing.assert_close(out, sample(shrink, tableau, y, noise=noise), rtol=1e-5, atol=1e-6)
    assert compiler.frame_count == 1


def test_counter_passes_for_its_denoiser() -> None:
    class WithRange:
        lam_max = 3.0

        def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
            return y

    counter = NFECounter(WithRange())
    assert counter.lam_max == 3.0
    assert not hasattr(counter, "levels")
    assert copy.deepcopy(counter).nfe == 0
    assert pickle.loads(pickle.dumps(NFECounter(torch.tanh))).nfe == 0


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu() -> None:
    tableau = EVERYTHING.tableau(grids.edm(8))
    noise = SeededNoise([1, 2], (3, 4), device="cuda")
    y = 80 * noise.initial()
    calls = 0

    def denoiser(y: Tensor, lam: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        torch.cuda.set_sync_debug_mode("error" if calls < 8 else "default")
        return shrink(y, lam)

    try:
        out = sample(denoiser, tableau, y, noise=noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = SeededNoise([1, 2], (3, 4))
    torch.testing.assert_close(
        out.cpu(), sample(shrink, tableau, 80 * on_cpu.initial(), noise=on_cpu), rtol=1e-4, atol=1e-5
    )
