import json
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from ranks import run_on_ranks

import ersde_lit.tuning.tuner as of_tuner
from ersde_lit.errors import UserError
from ersde_lit.solvers import ERSDE, DPMSolverPP, SavedTables, SeededNoise, Tableau, TableSampler, default, grids
from ersde_lit.solvers.oracles import Gaussian, Mixture
from ersde_lit.tuning import (
    LEARNING,
    STOPPING,
    EnergyDistance,
    LearnedTable,
    Problem,
    TableTuner,
    evolve,
    exact_gaussian,
    learnable,
    quiet_trainer,
    starts,
    tune,
)
from ersde_lit.tuning.learned import bytes_of_a_call
from ersde_lit.tuning.problem import blocks
from ersde_lit.tuning.tune import is_better

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"steps": 20, "batch": 50, "validate_every": 5, "validation": 1000}
EXACT = {"batch": 1, "validation": 1, "validate_every": 25}


def clusters() -> Problem:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    law = Mixture(torch.full((4,), 1 / 4, dtype=torch.float64), mean, torch.full((4, 1), 0.1, dtype=torch.float64))
    return Problem(law, (3,), EnergyDistance(lambda x: x, law.draw(1000, generator)))


def test_seeds_are_disjoint() -> None:
    assert LEARNING.stop <= STOPPING.start
    assert LEARNING.start > 2**40
    SeededNoise(STOPPING[-1:], (1,))


def test_a_spectrum_is_learned_far_below_every_start() -> None:
    found = tune(exact_gaussian(Gaussian.spectrum()), 5, TableSampler(DPMSolverPP()), steps=150, **EXACT)
    assert found.before.mean() > 0.14
    assert found.learned
    assert found.after.mean() < 0.03  # the best hand-made sampler's, on any grid, is 0.135


def test_what_is_optimal_stays() -> None:
    """A point is reached exactly by the ODE's order 1 and every other row of theory: there is nothing to learn."""
    data = Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    start = TableSampler(ERSDE(2, "ode", nodes=2.0, relative=True))
    found = tune(exact_gaussian(data), 4, start, stages=["drift", "noise"], steps=30, **EXACT)
    table = start.solver.tableau(start.grid(4))
    assert found.after.mean() < 1e-12
    torch.testing.assert_close(found.tableau.c[:, :2], table.c, rtol=0, atol=1e-9)


def test_every_stage_alone_is_never_worse() -> None:
    problem = clusters()
    grid, drift, noise = (tune(problem, 4, stages=[stage], **SMALL) for stage in ("grid", "drift", "noise"))
    for found in (grid, drift, noise):
        assert found.after.mean() <= found.before.mean()
        assert found.error >= 0
    assert "planned" in grid.start
    assert "planned" not in drift.start + noise.start
    assert drift.after.mean() < drift.before.mean()


def test_a_start_is_kept_only_where_it_is_surely_better(monkeypatch) -> None:
    """Of many starts one is the best by chance."""
    problem = clusters()
    scores = {"default": [1.0, 1.2, 1.1, 0.9], "other": [0.9, 1.25, 1.0, 0.95], "good": [0.5, 0.7, 0.6, 0.4]}
    tables = {name: default(3).table(problem.denoiser, 3)._replace() for name in scores}

    def scored(problem: Problem, table: Tableau, *rest: object) -> torch.Tensor:
        return torch.tensor(next(scores[name] for name, one in tables.items() if one is table))

    module = sys.modules["ersde_lit.tuning.tune"]  # whose name is the function's, too
    monkeypatch.setattr(module, "judge", scored)
    for names, kept in ((["default", "other"], "default"), (["default", "other", "good"], "good")):
        monkeypatch.setattr(module, "starts", lambda *a, names=names, **k: {n: tables[n] for n in names})
        found = tune(problem, 3, stages=["grid"], steps=1)
        assert (found.start, found.learned) == (kept, False)
        assert found.tableau is tables[kept]


def test_calls_are_computed_again_as_far_as_memory_demands_it(monkeypatch) -> None:
    heard, found = list[float](), {}

    def denoiser(y: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        heard.append(float(lam.detach()))
        return (y / (1 + lam)).sin()

    problem = replace(clusters(), denoiser=denoiser)
    size = bytes_of_a_call(denoiser, problem.draw(range(50))[0].initial(), torch.tensor(2.0))
    for remembered, again in ((0, 4), (2 * size, 2), (10 * size, 0)):
        monkeypatch.setattr(of_tuner, "REMEMBERED", remembered)
        table = LearnedTable(default(4).table(denoiser, 4))
        tuner = TableTuner(table, problem, steps=1, batch=50, validation=50, start_scores=torch.ones(1))
        heard.clear()
        quiet_trainer(problem, 1).fit(tuner)
        assert tuner.recomputed == again
        assert len(heard) == 1 + 4 + again + 4  # of the count, of the step, of the judging
        found[again] = table.state_dict()
    for again in (2, 0):
        torch.testing.assert_close(found[again], found[4], rtol=0, atol=0)


def test_learning_that_diverges_leaves_the_start() -> None:
    start = default(4).solver.tableau(default(4).grid(4))
    tuner = TableTuner(LearnedTable(start), clusters(), learning_rate=30.0, **SMALL)
    quiet_trainer(tuner.problem, 20).fit(tuner)
    assert tuner.best_scores is not None
    assert tuner.best_scores.mean() <= tuner.score(start).mean()
    torch.testing.assert_close(tuner.best.lams, start.lams)


def test_without_gradients() -> None:
    problem = clusters()
    start = default(4).solver.tableau(default(4).grid(4))
    table = learnable(problem, start, ["levels", "rows", "noise"])
    evolve(table, problem, evaluations=60, samples=300)
    before, after = (problem.scores(t, STOPPING[:1000]).mean() for t in (start, table.tableau()))
    assert after < 0.7 * before


def killed_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets `Problem.scores` raise at one more call than that; returns the calls' numbers, a list that grows."""
    scores, made = Problem.scores, list[int]()

    def counted(*given: Any, **named: Any) -> torch.Tensor:
        if len(made) == calls:
            raise RuntimeError("killed")
        made.append(len(made))
        return scores(*given, **named)

    monkeypatch.setattr(Problem, "scores", counted)
    return made


def search(record: Path | None) -> LearnedTable:
    problem = clusters()
    table = learnable(problem, default(4).table(problem.denoiser, 4), ["levels", "rows", "noise"])
    evolve(table, problem, evaluations=40, samples=50, record=record)
    return table


def test_a_killed_search_goes_on_as_if_it_had_not(tmp_path, monkeypatch) -> None:
    record, whole = tmp_path / "run" / "x.json", search(None)
    for calls in (25, 10, 1000):  # populations are of 9 points
        with monkeypatch.context() as patch:
            made = killed_after(calls, patch)
            if calls == 1000:
                table = search(record)
            else:
                with pytest.raises(RuntimeError, match="killed"):
                    search(record)
        assert len(json.loads(record.read_text())) == {25: 2, 10: 3, 1000: 4}[calls]
    assert len(made) == 9
    torch.testing.assert_close(table.state_dict(), whole.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(search(record).state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert [path.name for path in record.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", '"x"', "[[1]]", "[[[1, 2]]]", '{"a": 1}', "[" * 10_000,
     *(json.dumps([[[bad] + [0.0] * 6] * 9]) for bad in ("x", None, 1e40, float("nan"))),
     json.dumps([[[0.0] * 6 + [float("inf")]] * 9])],
)  # fmt: skip
def test_a_damaged_record_is_refused_in_one_line(content, tmp_path) -> None:
    record = tmp_path / "x.json"
    record.write_text(content)
    with pytest.raises(UserError, match="is damaged or of another search: delete it") as error:
        search(record)
    assert "\n" not in str(error.value)
    assert record.read_text() == content


def test_a_start_is_judged_once(monkeypatch) -> None:
    made = killed_after(1000, monkeypatch)
    start = TableSampler(DPMSolverPP())
    found = tune(exact_gaussian(Gaussian.spectrum()), 3, start, stages=["drift"], steps=1, batch=1, validation=1)
    assert found.start == "given"
    assert len(made) == 2  # the start and what was learned


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path) -> None:
    def tuner() -> TableTuner:
        return TableTuner(LearnedTable(default(4).solver.tableau(default(4).grid(4))), clusters(), **SMALL)

    def trainer(steps: int) -> pl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        return pl.Trainer(max_steps=steps, enable_checkpointing=False, gradient_clip_val=1.0, **quiet)

    whole = tuner()
    trainer(20).fit(whole)
    half = tuner()
    first = trainer(7)
    first.fit(half)
    first.save_checkpoint(tmp_path / "half.ckpt")
    rest = tuner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(20).fit(rest, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert whole.best_scores is not None
    torch.testing.assert_close(rest.best_scores, whole.best_scores, rtol=0, atol=0)
    torch.testing.assert_close(rest.table.state_dict(), whole.table.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(rest.best[:4], whole.best[:4], rtol=0, atol=0)


def test_a_denoiser_is_learned_within_its_range_and_told_labels() -> None:
    class Net(torch.nn.Module):
        lam_min, lam_max, levels = 0.05, 20.0, None

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, y, lam, labels=None):
            assert self.lam_min * 0.99 <= float(lam.detach()) <= self.lam_max * 1.01
            assert labels is not None
            target = torch.nn.functional.one_hot(labels, 3).to(y) * self.weight.detach()
            return (0.01 * y + lam**2 * target) / (0.01 + lam**2)

    bank = torch.eye(3).repeat(100, 1) + 0.1 * torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    problem = Problem(Net(), (3,), EnergyDistance(lambda x: x, bank), labels=lambda seeds: torch.tensor(seeds) % 3)
    found = tune(problem, 3, **SMALL)
    assert found.after.mean() <= found.before.mean()
    assert found.tableau.lams[0] <= 20.0 * (1 + 1e-9)


def test_ranks_learn_one_table_and_share_the_judging() -> None:
    done = run_on_ranks(Path(__file__).with_name("tune_on_ranks.py"), "learn")
    assert done.codes == [0, 0], done.said
    first, second = done.values
    assert first == second
    assert first["kept"] == pytest.approx(first["alone"], abs=1e-6)


def test_ranks_share_a_search() -> None:
    done = run_on_ranks(Path(__file__).with_name("tune_on_ranks.py"), "search")
    assert done.codes == [0, 0], done.said
    first, second = done.values
    assert first["alone"] == first["shared"] == second["shared"]
    assert first["calls"]["shared"] == second["calls"]["shared"] == first["calls"]["alone"] / 2


def test_a_gain_within_the_spread_of_its_blocks_is_none() -> None:
    before = torch.tensor([1.0, 1.2, 0.9, 1.1])
    assert is_better(before - 0.1, before)  # the same in every block
    assert not is_better(before - torch.tensor([0.5, -0.3, 0.4, -0.2]), before)
    assert not is_better(torch.tensor([0.1, 0.1, 0.1, torch.inf]), before)
    assert is_better(before[:1] - 0.1, before[:1])


def test_blocks_are_whole_and_of_one_size() -> None:
    for n, size in ((3000, 500), (501, 500), (999, 500), (7, 500), (1001, 500)):
        parts = blocks(range(n), size)
        assert [seed for part in parts for seed in part] == [*range(n)]
        assert min(map(len, parts)) >= min(n, size)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_start_that_diverges_is_left_out() -> None:
    problem, start = clusters(), TableSampler(DPMSolverPP())
    table = start.table(problem.denoiser, 3)
    bad = table._replace(r=torch.full_like(table.r, 1e300))
    found = tune(problem, 3, start, stages=[], validation=600, candidates={"bad": bad})
    assert found.start == "given"
    assert found.after.isfinite().all()
    with pytest.raises(FloatingPointError, match="no sampler to start from"):
        tune(problem, 3, TableSampler(SavedTables({3: bad}), SavedTables({3: bad}).grid), stages=[], validation=600)


def test_scores_of_a_table_that_diverges_are_not_kept() -> None:
    problem = clusters()
    table = learnable(problem, default(3).table(problem.denoiser, 3), ["rows"])
    tuner = TableTuner(table, problem, steps=1, validation=600)
    tuner.trainer = quiet_trainer(problem, 1)
    tuner.on_train_start()
    best = tuner.best_scores
    with torch.no_grad():
        tuner.average.state.fill_(1e36)
    assert tuner._stop_or_keep() is None
    assert tuner.best_scores is best


def test_levels_told_of_a_discrete_denoiser_have_no_gradient_to_wait_for() -> None:
    problem = clusters()
    table = LearnedTable(default(3).table(problem.denoiser, 3), levels=grids.vp_levels())
    assert not TableTuner(table, problem).table.told.requires_grad


def test_levels_are_planned_only_where_there_is_a_finer_run() -> None:
    problem = clusters()
    assert {"default", "noisy"} < {*starts(problem, 3)}
    assert any("planned" in name for name in starts(problem, 3))
    assert not any("planned" in name for name in starts(problem, 64))


def test_nothing_to_evolve_is_no_error() -> None:
    problem = clusters()
    found = tune(problem, 1, stages=["noise"], gradients=False, steps=8, validation=600)
    assert found.tableau.nfe == 1


def test_unknown_stages_are_refused() -> None:
    with pytest.raises(UserError, match="stages are grid, drift, noise"):
        tune(clusters(), 4, stages=["colour"])  # type: ignore[list-item]


def test_the_quiet_trainer_runs_where_the_problem_is() -> None:
    assert quiet_trainer(clusters(), 3).max_steps == 3


def test_without_a_trainer_nothing_is_said_and_nothing_stays_changed() -> None:
    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said, handler = list[str](), Keep()
    names = [name for name in logging.root.manager.loggerDict if name.startswith("lightning")]
    loggers = [logging.getLogger(name) for name in names]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        filters = [*warnings.filters]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            tune(exact_gaussian(Gaussian.spectrum()), 3, stages=["drift"], steps=1, batch=1, validation=1)
            assert [logger.level for logger in loggers] == levels
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
        assert warnings.filters == filters
    assert said == [str(one.message) for one in warned] == []


def test_grids_start_a_table_by_hand() -> None:
    start = TableSampler(DPMSolverPP(), lambda n: grids.edm(n, rho=5.0))
    assert tune(clusters(), 4, start, stages=[], **SMALL).start == "given"
