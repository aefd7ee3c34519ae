"""The schedulers run saved tables: as the solver that made them, and through the calls that learned ones tell."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from ersde_lit.denoisers.preconditioning import PREDICTIONS  # noqa: E402
from ersde_lit.errors import UserError  # noqa: E402
from ersde_lit.interop.diffusers.scheduler import (  # noqa: E402
    ERSDEEDMScheduler,
    ERSDEFlowMatchScheduler,
    ERSDEScheduler,
)
from ersde_lit.interop.k_diffusion import sample_er_sde, table_sigmas  # noqa: E402
from ersde_lit.solvers import (  # noqa: E402
    DEIS,
    ERSDE,
    SavedTables,
    SeededNoise,
    Solver,
    UniPC,
    grids,
    sample,
    write_tables,
)

SHAPE = (3, 4, 4)
NOISE = SeededNoise([5, 6], SHAPE, dtype=torch.float64)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (ERSDEScheduler, {}),
    (ERSDEScheduler, {"prediction_type": "v_prediction"}),
    (ERSDEScheduler, FLOW),
    (ERSDEEDMScheduler, {}),
    (ERSDEFlowMatchScheduler, {}),
]
SOLVERS = [ERSDE(2, "sde", corrector=2), ERSDE(3, "er_sde_5"), UniPC(3), DEIS()]
CALLS = torch.tensor([0.85, 0.9, 1.05, 0.97, 0.94, 1.02], dtype=torch.float64)


def exact(y: Tensor, lam: Tensor) -> Tensor:
    """The denoiser of 0.5 N(-0.4, 0.2^2) + 0.5 N(0.4, 0.2^2) in each coordinate."""
    variance = 0.04 + lam**2
    return (0.04 * y + lam**2 * 0.4 * torch.tanh(0.4 * y / variance)) / variance


class Model:
    """A network F in the preconditioning of a scheduler, of which a denoiser(y, lam) is made as everywhere.

    It is told a timestep; `lam_of` undoes what the scheduler made of the level.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def lam_of(self, t: Tensor) -> Tensor:
        t = t.double()
        if isinstance(self.scheduler, ERSDEEDMScheduler):
            return (4 * t).exp()
        if isinstance(self.scheduler, ERSDEScheduler) and not self.scheduler.config.use_flow_sigmas:
            levels = grids.vp_levels().log()
            return (levels[t.floor().long()] * (1 - t.frac()) + levels[t.ceil().long()] * t.frac()).exp()
        return (t / 1000) / (1 - t / 1000)

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """The output whose x0 is that of `exact` at the level told, of the input x as it is scaled there."""
        lam, process = self.lam_of(t), self.scheduler.process
        edm = isinstance(self.scheduler, ERSDEEDMScheduler)
        y = x * (lam**2 + 0.25).sqrt() if edm else x / process.alpha_of_lam(lam)
        c_skip, c_out = PREDICTIONS[self.scheduler.prediction].coefficients(lam, 0.5, process)
        return (exact(y, lam) - c_skip * y) / c_out

    def run(self, n: int) -> Tensor:
        """A pipeline's loop from ``init_noise_sigma`` times noise."""
        self.scheduler.set_timesteps(n)
        x = self.scheduler.init_noise_sigma * NOISE.initial()
        for i, t in enumerate(self.scheduler.timesteps):
            output = self.network(self.scheduler.scale_model_input(x, t), t)
            x = self.scheduler.step(output, t, x, variance_noise=NOISE.step(i)).prev_sample
        return x


def grid(n: int) -> Tensor:
    """Levels in the range of Stable Diffusion's process, on its own, so that integers tell them."""
    return torch.cat([grids.vp_levels()[torch.linspace(980, 20, n).round().long()], torch.zeros(1).double()])


def saved(solver: Solver, n: int = 6, **changes: Any) -> SavedTables:
    return SavedTables({n: solver.tableau(grid(n))._replace(**changes)}, {"guidance": {"cfg_scale": 2.0}})


def expected(tables: SavedTables, n: int = 6) -> Tensor:
    return sample(exact, tables.tables[n], float(grid(n)[0]) * NOISE.initial(), noise=NOISE)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_it_is_our_loop(kind: Any, options: dict[str, Any], solver: Solver) -> None:
    tables = saved(solver)
    scheduler = kind(tables=tables.plain(), **options)
    # Timesteps are of single precision.
    torch.testing.assert_close(Model(scheduler).run(6), expected(tables), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_of_a_solver_they_are_that_solver_to_the_last_bit(kind: Any, options: dict[str, Any]) -> None:
    plain = kind(order=2, corrector=3, noise_scale="er_sde_3", **options)
    plain.set_timesteps(7)
    table = ERSDE(2, "er_sde_3", corrector=3).tableau(plain._lams)
    tabled = kind(tables=SavedTables({7: table}).plain(), **options)
    tabled.set_timesteps(7)
    for name in ("timesteps", "sigmas"):
        assert torch.equal(getattr(tabled, name), getattr(plain, name))
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    ends = []
    for scheduler in (plain, tabled):
        y, generator = x, torch.Generator().manual_seed(1)
        for t in scheduler.timesteps:
            y = scheduler.step(0.9 * scheduler.scale_model_input(y, t), t, y, generator).prev_sample
        ends.append(y)
    assert torch.equal(*ends)


@pytest.mark.parametrize("history", ["x0", "d"])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_calls_are_told_here_and_in_k_diffusion(kind: Any, options: dict[str, Any], history: str) -> None:
    solver = ERSDE(2, "sde", corrector=2) if history == "x0" else DEIS()
    tables = saved(solver, calls=grid(6)[:-1] * CALLS)
    image = expected(tables)
    assert (image - expected(saved(solver))).abs().max() > 1e-3
    process = ERSDEScheduler(tables=tables.plain())
    if kind is ERSDEScheduler and not options.get("use_flow_sigmas"):  # levels between the timesteps are rounded
        told = Model(process).lam_of(rounded(tables))
        tables = saved(solver, calls=told)
        image = expected(tables)
    scheduler = kind(tables=tables.plain(), **options)
    torch.testing.assert_close(Model(scheduler).run(6), image, rtol=0, atol=2e-5)
    for flow in (False, True):
        sigmas = table_sigmas(tables, 6, flow)
        assert sigmas.dtype == torch.float32

        def model(x: Tensor, sigma: Tensor, flow: bool = flow) -> Tensor:
            sigma = sigma.double().view(-1, 1, 1, 1)
            return exact(x / (1 - sigma), sigma / (1 - sigma)) if flow else exact(x, sigma)

        lam = float(tables.grid(6)[0])
        x = NOISE.initial() * lam / (1 + lam if flow else 1)
        draws = iter(NOISE.step(i) for i in range(6))
        out = sample_er_sde(
            model, x, sigmas, disable=True, flow=flow, tables=tables, noise_sampler=lambda *levels, d=draws: next(d)
        )
        torch.testing.assert_close(out, image, rtol=0, atol=2e-5)


def rounded(tables: SavedTables) -> Tensor:
    scheduler = ERSDEScheduler(tables=tables.plain())
    scheduler.set_timesteps(6)
    return scheduler.timesteps


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_saved_configuration_carries_them(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    tables = saved(UniPC(3), calls=grid(6)[:-1])
    write_tables(tmp_path / "x.tables", tables)
    first = kind(tables=str(tmp_path / "x.tables"), **options)
    (tmp_path / "x.tables").unlink()
    first.save_pretrained(tmp_path)
    for scheduler in (
        kind.from_pretrained(tmp_path),
        kind.from_config(first.config),
        kind.from_config(kind(**options).config, tables=tables.plain()),
        kind.from_config(kind(**options).config, tables=tables),
    ):
        assert SavedTables.of_plain(scheduler.config.tables) == tables
        assert torch.equal(Model(scheduler).run(6), Model(first).run(6))


def test_noise_of_inpainting_has_the_levels_of_the_states() -> None:
    tables = saved(UniPC(), calls=grid(6)[:-1] * CALLS)
    for kind, options in KINDS:
        scheduler = kind(tables=tables.plain(), **options)
        scheduler.set_timesteps(6)
        x0, eps = torch.full((1, *SHAPE), 0.3), torch.ones(1, *SHAPE)
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.add_noise(x0, eps, t[None])
            alpha = scheduler.process.alpha_of_lam(tables.tables[6].told[i])
            torch.testing.assert_close(x, (alpha * (x0 + grid(6)[i] * eps)).float())


@pytest.mark.parametrize(
    ("kind", "run", "message"),
    [
        *((kind, lambda s: s.set_timesteps(5), "no table of 5 calls, only of 6") for kind, _ in KINDS[2:]),
        (ERSDEScheduler, lambda s: s.set_timesteps(timesteps=[900, 1]), "set num_inference_steps, not timesteps"),
        (ERSDEEDMScheduler, lambda s: s.set_timesteps(sigmas=[1.0, 0.0]), "set num_inference_steps, not sigmas"),
        (ERSDEFlowMatchScheduler, lambda s: (s.set_timesteps(6), begin(s, 2)), "not step 2"),
        (ERSDEScheduler, lambda s: (s.set_timesteps(6), begin(s, 1)), "not step 1"),
        (
            ERSDEFlowMatchScheduler,
            lambda s: (s.set_timesteps(6), begin(s, 0, per_token_timesteps=torch.ones(1, 1))),
            "tables have none",
        ),
    ],
)
def test_what_they_cannot_run_is_refused(kind: Any, run: Any, message: str) -> None:
    scheduler = kind(tables=saved(UniPC()).plain())
    with pytest.raises(UserError, match=message) as error:
        run(scheduler)
    assert "\n" not in str(error.value)


def begin(scheduler: Any, i: int, **more: Any) -> None:
    scheduler.set_begin_index(i)
    x = torch.zeros(1, *SHAPE)
    scheduler.step(x, scheduler.timesteps[i], x, **more)


def test_levels_that_the_model_does_not_know_are_refused() -> None:
    for lams in (grids.edm(6, lam_max=200.0), grids.edm(6)):
        scheduler = ERSDEScheduler(tables=SavedTables({6: UniPC().tableau(lams)}).plain())
        with pytest.raises(UserError, match=f"levels from {lams[0]:g} to 0.002, .* from 157.41 to 0.01"):
            scheduler.set_timesteps(6)


def test_flow_pipelines_pass_sigmas_of_which_the_number_counts() -> None:
    scheduler = ERSDEFlowMatchScheduler(tables=saved(UniPC()).plain(), use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 6, 6), mu=0.7)
    assert scheduler.num_inference_steps == 6
    torch.testing.assert_close(scheduler.sigmas.double(), grid(6) / (1 + grid(6)))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing at"):
        ERSDEScheduler(tables=str(tmp_path / "absent.tables"))
    with pytest.raises(UserError, match="holds no tables"):
        ERSDEEDMScheduler(tables={"x": 1})


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_is_not_shaped_as_the_state_is_refused(kind: Any, options: dict[str, Any]) -> None:
    """Of one image it would be that of all."""
    scheduler = kind(tables=saved(ERSDE(2, "sde")).plain(), **options)
    scheduler.set_timesteps(6)
    state = torch.zeros(2, *SHAPE)
    for output, noise, what in ((state[:1], None, "model_output"), (state, state[:1], "variance_noise")):
        with pytest.raises(UserError, match=f"{what} must have the shape of y"):
            scheduler.step(output, scheduler.timesteps[0], state, variance_noise=noise)
    learned_variance = torch.zeros(2, 6, 4, 4)
    assert scheduler.step(learned_variance, scheduler.timesteps[0], state).prev_sample.shape == state.shape
