"""TableTuner: the LightningModule that learns a table for a frozen denoiser."""

import math
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from ersde_lit.ranks import Ranks
from ersde_lit.solvers import Tableau
from ersde_lit.tuning.learned import LearnedTable, bytes_of_a_call
from ersde_lit.tuning.problem import LEARNING, Problem, judge

DECAY = 0.9  # of the moving average of the parameters
REMEMBERED = 2**30  # bytes of all calls


class TableTuner(pl.LightningModule):
    """Learns `table` by Adam on fresh noise at every step, and keeps the best average of it, judged on other noise.

    ``trainer.fit(tuner)`` with ``max_steps=tuner.steps`` and ``gradient_clip_val=1.0``. Each rank draws seeds of its
    own. Every `validate_every` steps the moving average of the parameters is scored on the stopping seeds, the same
    ones each time; `best` is the table of the best score so far, the start's included, so it is never worse than the
    start there. Logs `loss` and `stop`. The table, its average, the best and the optimizer are in the checkpoints
    that a Trainer writes, denoiser and objective are not.

    Args:
        table: what learns, in place.
        problem: moved to the device of the run.
        steps: of Adam; the learning rate falls to 0 along half a cosine.
        batch: seeds a step and rank.
        learning_rate: of all parameters, at the start.
        validate_every: steps from one score to the next.
        validation: stopping seeds.
        block: of them, judged together: the larger, the less a distance between sets varies.
        recomputed: calls that are computed again in the backward pass (see `LearnedTable.run`); None: as few as it
            takes for the others to remember no more than `REMEMBERED`, 1 GiB, as the first step shows.
        start_scores: of the start, as `judge` has them, where they are known; None: it is judged before learning.
    """

    best_scores: Tensor | None  # (blocks,) on the stopping seeds; None before the start was scored
    start_scores: Tensor | None

    def __init__(
        self,
        table: LearnedTable,
        problem: Problem,
        steps: int = 300,
        batch: int = 200,
        learning_rate: float = 0.02,
        validate_every: int = 25,
        validation: int = 3000,
        block: int = 500,
        recomputed: int | None = None,
        start_scores: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.table, self.problem = table, problem
        if table.known is not None:
            table.told.requires_grad_(False)  # the nearest of discrete levels has no gradient
        self.steps, self.batch, self.learning_rate = steps, batch, learning_rate
        self.validate_every, self.validation, self.block = validate_every, validation, block
        self.recomputed = recomputed
        self.best = table.tableau()
        self.best_scores, self.start_scores = None, start_scores
        table.stir_()
        self.average = deepcopy(table).requires_grad_(False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam([p for p in self.table.parameters() if p.requires_grad], self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        # Counts steps; which seeds a step learns from is told by its number and the rank alone.
        return DataLoader(torch.arange(self.steps * self.trainer.world_size), batch_size=None)  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        self.problem = self.problem.to(self.device)

    def on_train_start(self) -> None:
        if self.best_scores is None:
            known = self.start_scores  # the first rank's, as ranks' arithmetic may differ
            self.best_scores = self.score(self.best) if known is None else self.trainer.strategy.broadcast(known)

    def training_step(self, batch: Any, index: int) -> Tensor:
        position = (self.global_step * self.trainer.world_size + self.global_rank) * self.batch
        noise, labels = self.problem.draw(LEARNING[position : position + self.batch])
        if self.recomputed is None:
            y = noise.initial()
            size = bytes_of_a_call(self.problem.denoiser, y, self.table.tableau().told[0].to(y.dtype), labels)
            self.recomputed = max(0, self.table.nfe - REMEMBERED // max(1, size))
        x = self.table.run(self.problem.denoiser, noise, labels, recomputed=self.recomputed)
        loss = self.problem.objective(x, noise, labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for p in self.table.parameters():
            if p.grad is not None and not p.grad.isfinite().all():
                p.grad.zero_()

    def on_train_batch_end(self, *args: Any) -> None:
        self.table.project_()
        step = self.global_step
        decay = min(DECAY, step / (step + 9))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.table.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        due = step % self.validate_every == 0 or step == self.steps
        if due and (score := self._stop_or_keep()) is not None:
            self.log("stop", score, prog_bar=True, rank_zero_only=True)

    def on_train_end(self) -> None:
        if self.global_step % self.validate_every and self.global_step != self.steps:  # time was up
            self._stop_or_keep()

    def score(self, tableau: Tableau) -> Tensor:
        """The objective on the stopping seeds, block by block, (blocks,); see `judge`."""
        ranks = Ranks(self.trainer.global_rank, self.trainer.world_size)
        return judge(self.problem, tableau, self.validation, self.batch, ranks, self.block)

    def _stop_or_keep(self) -> float | None:
        """Scores the average and keeps it if it is the best; None where it has no score."""
        tableau = self.average.tableau()
        scores = self.score(tableau)
        assert self.best_scores is not None
        if scores.mean() < self.best_scores.mean():
            self.best, self.best_scores = tableau, scores
        mean = float(scores.mean())
        return mean if math.isfinite(mean) else None

    def _share_of_rate(self, step: int) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tuning"] = {"best": self.best._asdict(), "best_scores": self.best_scores}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["tuning"]
        self.best, self.best_scores = Tableau(**kept["best"]), kept["best_scores"]
