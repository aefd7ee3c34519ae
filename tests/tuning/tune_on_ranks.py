"""Learns a table on the ranks that start it."""

from typing import Any

import lightning.pytorch as pl
import torch

from ersde_lit.ranks import Ranks
from ersde_lit.solvers import default
from ersde_lit.solvers.oracles import Mixture
from ersde_lit.tuning import STOPPING, EnergyDistance, LearnedTable, Problem, TableTuner, tune


def problem(calls: list[int] | None = None) -> Problem:
    """Two clusters; its objective counts its calls."""
    law = Mixture(torch.full((2,), 0.5), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.full((2, 1), 0.1))
    distance = EnergyDistance(lambda x: x, law.draw(500, torch.Generator().manual_seed(0)))

    def counted(*given: Any) -> torch.Tensor:
        if calls is not None:
            calls.append(1)
        return distance(*given)

    return Problem(law, (2,), counted)


def search() -> dict[str, Any]:
    """Tables found without gradients, by each rank alone and then by both, and how often samples were judged."""
    found: dict[str, Any] = {"calls": {}}
    for how in ("alone", "shared"):
        calls = list[int]()
        if how == "shared":
            Ranks.start("cpu", 2)
        tuned = tune(problem(calls), 3, stages=["drift", "noise"], gradients=False, steps=20, validation=1000)
        found[how] = [tuned.after.tolist(), tuned.tableau.lams.tolist(), tuned.tableau.c.tolist()]
        found["calls"][how] = len(calls)
    return found


def learn() -> dict[str, Any]:
    """What a rank ends with: scores by block as kept, the same measured alone, levels."""
    of = problem()
    table = LearnedTable(default(3).solver.tableau(default(3).grid(3)))
    tuner = TableTuner(table, of, steps=6, batch=20, validate_every=3, validation=90, block=30)
    trainer = pl.Trainer(
        max_steps=6, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(tuner)
    assert tuner.best_scores is not None
    alone = of.scores(tuner.best, STOPPING[:90], 20, 30)
    return {"kept": tuner.best_scores.tolist(), "alone": alone.tolist(), "levels": table.tableau().lams.tolist()}
