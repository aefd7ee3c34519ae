"""tune: the best table for a denoiser at a number of calls, from a start through the stages."""

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.names import STAGES, Stage
from ersde_lit.ranks import Ranks, quiet
from ersde_lit.solvers import ERSDE, DPMSolverPP, Tableau, TableSampler, default, grids, noisy
from ersde_lit.tuning.evolve import evolve
from ersde_lit.tuning.learned import Freedom, LearnedTable
from ersde_lit.tuning.plan import fine_calls, plan_levels
from ersde_lit.tuning.problem import LEARNING, Problem, judge
from ersde_lit.tuning.rows import NODES
from ersde_lit.tuning.tuner import TableTuner

FREEDOMS_OF: dict[Stage, tuple[Freedom, ...]] = {
    "grid": (),
    "drift": ("levels", "rows", "gain", "calls"),
    "noise": ("noise",),
}
SMOOTH = ERSDE(2, "ode", nodes=NODES, relative=True)  # the rows that levels are planned for


class Tuned(NamedTuple):
    """A table that was learned, and its objective on the stopping seeds before and after, block by block.

    Attributes:
        tableau: the learned one; where it is not better than its start, the start's; where that is not better than the
            sampler that was given, or than the default, its own.
        start: name of what it was learned from.
        before: (blocks,) of the sampler that was given, or of the default.
        after: (blocks,) of `tableau`, on the same noise.
        learned: whether `tableau` was learned.
    """

    tableau: Tableau
    start: str
    before: Tensor
    after: Tensor
    learned: bool = False

    @property
    def error(self) -> float:
        """Standard error of the mean of ``after - before``; NaN for one block."""
        return _standard_error(self.after - self.before)


def starts(problem: Problem, nfe: int, given: TableSampler | None = None, plan: bool = True) -> dict[str, Tableau]:
    """Tables that learning may start from, by name: the first is the sampler given, or the default.

    Args:
        plan: whether levels are planned for the denoiser too, by one fine run of it, where that has more calls.
    """
    samplers = {"default": default(nfe)} if given is None else {"given": given}
    if given is None:
        samplers |= {
            "noisy": noisy(nfe),
            "ode, rho 7": TableSampler(SMOOTH, add_mean=True),
            "ode, rho 10 from 50": TableSampler(SMOOTH, partial(grids.edm, lam_max=50.0, rho=10.0), add_mean=True),
            "dpm++2m": TableSampler(DPMSolverPP()),
        }
    if plan and nfe < fine_calls(problem.denoiser):
        levels = grids.Fixed(plan_levels(problem, [nfe], LEARNING[-64:])[nfe].tolist())
        planned = ("default", "ode, rho 7") if given is None else ("given",)
        samplers |= {f"{name}, planned levels": replace(samplers[name], grid=levels) for name in planned}
    return {name: sampler.table(problem.denoiser, nfe) for name, sampler in samplers.items()}


def tune(
    problem: Problem,
    nfe: int,
    start: TableSampler | None = None,
    *,
    stages: Collection[Stage] = STAGES,
    learn: Collection[Freedom] | None = None,
    gradients: bool = True,
    steps: int = 300,
    batch: int = 200,
    learning_rate: float = 0.02,
    validate_every: int = 25,
    validation: int = 3000,
    recomputed: int | None = None,
    trainer: pl.Trainer | None = None,
    candidates: Mapping[str, Tableau] = {},
    ckpt_path: str | Path | None = None,
    record: str | Path | None = None,
) -> Tuned:
    """The best table of `nfe` calls for a problem; its start, where none is better beyond the stopping seeds' spread.

    In a process group that was started before, ranks share the judging, and `evolve` its candidates.

    Args:
        start: what to start from; None: the best, on the stopping seeds, of some that are known to be good.
        stages: grid: levels planned by one run of the denoiser are tried as a start; drift: levels, rows and the levels
            told are learned; noise: the noise of each step. What is learned is learned together.
        learn: freedoms of `LearnedTable` instead of those of the stages.
        gradients: False: by `evolve`, in about as many runs as there are steps.
        steps, batch, learning_rate, validate_every, validation, recomputed: see `TableTuner`.
        trainer: with ``max_steps=steps`` and ``gradient_clip_val=1.0``; None: a quiet one on the problem's device.
        candidates: further tables to start from, by name, if they are the best.
        ckpt_path: the trainer's checkpoint of the same learning, to go on from.
        record: without gradients, the file of `evolve` by which a killed learning goes on.

    Raises:
        UserError: an unknown stage or freedom, or a start that cannot be learned from.
        FloatingPointError: no start gave finite samples.
    """
    if unknown := {*stages} - {*STAGES}:
        raise UserError(f"stages are {', '.join(STAGES)}, not {', '.join(sorted(unknown))}")
    tables = starts(problem, nfe, start, plan="grid" in stages) | {**candidates}
    ranks = Ranks.here()
    judged = {name: judge(problem, table, validation, batch, ranks) for name, table in tables.items()}
    given, before = next(iter(judged.items()))
    name = min(judged, key=lambda k: float(judged[k].mean()))
    if not judged[name].isfinite().all():
        raise FloatingPointError(f"at {nfe} calls no sampler to start from gives finite samples")
    best = Tuned(tables[name], name, before, judged[name])
    unlearned = best if is_better(best.after, before) else Tuned(tables[given], given, before, before)
    learn = {f for stage in stages for f in FREEDOMS_OF[stage]} if learn is None else learn
    if not learn:
        return unlearned
    table = learnable(problem, best.tableau, learn)
    if gradients:
        tuner = TableTuner(
            table, problem, steps, batch, learning_rate, validate_every, validation, recomputed=recomputed,
            start_scores=best.after,
        )  # fmt: skip
        (trainer or quiet_trainer(problem, steps)).fit(tuner, ckpt_path=ckpt_path)
        found, after = tuner.best, tuner.best_scores
    else:
        evolve(table, problem, steps, min(1000, validation), batch, record=record, ranks=ranks)
        found = table.tableau()
        after = judge(problem, found, validation, batch, ranks)
    if after is None or not is_better(after, best.after):
        return unlearned
    return best._replace(tableau=found, after=after, learned=True)


def is_better(after: Tensor, before: Tensor) -> bool:
    """Whether the mean over blocks is lower by more than two standard errors, of several blocks."""
    gain = before - after
    return bool(gain.mean() > 0) and not gain.mean() <= 2 * _standard_error(gain)


def _standard_error(blocks: Tensor) -> float:
    """Of their mean; NaN for one."""
    return float(blocks.std()) / math.sqrt(len(blocks)) if len(blocks) > 1 else math.nan


def learnable(problem: Problem, start: Tableau, learn: Collection[Freedom]) -> LearnedTable:
    """A LearnedTable within the range and levels of the problem's denoiser; of discrete time, its levels stay."""
    limits: dict[str, Any] = {
        name: getattr(problem.denoiser, name)
        for name in ("lam_min", "lam_max", "levels")
        if getattr(problem.denoiser, name, None) is not None
    }
    if "levels" in limits:
        learn = {*learn} - {"levels"}
    return LearnedTable(start, learn, **limits)


def quiet_trainer(problem: Problem, steps: int) -> pl.Trainer:
    """A Trainer of one device, without logger, checkpoints, bar and Lightning's messages."""
    device = torch.device(problem.device)
    with quiet():
        return _Quiet(
            max_steps=steps,
            gradient_clip_val=1.0,
            accelerator=device.type.replace("cuda", "gpu"),
            devices=1 if device.index is None else [device.index],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


class _Quiet(pl.Trainer):
    def fit(self, *given: Any, **named: Any) -> None:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            super().fit(*given, **named)
