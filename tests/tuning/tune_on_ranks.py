"""Learns a table on the ranks that start it."""

from typing import Any

import lightning.pytorch as pl
import torch

from ersde_lit.solvers import default
from ersde_lit.solvers.oracles import Mixture
from ersde_lit.tuning import STOPPING, EnergyDistance, LearnedTable, Problem, TableTuner


def learn() -> dict[str, Any]:
    """What a rank ends with: scores by block as kept, the same measured alone, levels."""
    law = Mixture(torch.full((2,), 0.5), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.full((2, 1), 0.1))
    bank = law.draw(500, torch.Generator().manual_seed(0))
    problem = Problem(law, (2,), EnergyDistance(lambda x: x, bank))
    table = LearnedTable(default(3).solver.tableau(default(3).grid(3)))
    tuner = TableTuner(table, problem, steps=6, batch=20, validate_every=3, validation=90, block=30)
    trainer = pl.Trainer(
        max_steps=6, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(tuner)
    assert tuner.best_scores is not None
    alone = problem.scores(tuner.best, STOPPING[:90], 20, 30)
    return {"kept": tuner.best_scores.tolist(), "alone": alone.tolist(), "levels": table.tableau().lams.tolist()}
