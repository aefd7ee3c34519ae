"""Rolling checkpoints from which a run resumes exactly."""

import math
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ersde_lit.errors import UserError
from ersde_lit.training.guard import GuardedModule

STEP_KEY = "step_of_epoch"
TERMINATED = 128 + signal.SIGTERM  # exit code of a process that SIGTERM ended


class RollingCheckpoint(Checkpoint):
    """Keeps <default_root_dir>/checkpoints/last.ckpt at most `minutes` old, and the one before it as previous.ckpt.

    Checkpoints are written between two optimiser steps: as often as said here, after each validation, and at the end,
    when previous.ckpt is removed. A run that is resumed takes the steps it would have taken, also when the devices that
    share them have changed; with the same ones it ends with the same bits. What it had logged after the checkpoint is
    logged once more, with equal values.

    On SIGTERM the run is saved after the step (or the validation) it is at, and ends with exit code 143. A run that
    diverges is not saved (`GuardedModule`). In mid-run a step whose loss is not finite is not either, but a later one.

    Args:
        minutes: between two checkpoints.
        steps: optimiser steps between two; None: only `minutes` counts.

    Raises:
        ValueError: an interval that is not positive.
    """

    dirpath: Path

    def __init__(self, minutes: float = 10.0, steps: int | None = None) -> None:
        if minutes <= 0 or (steps is not None and steps < 1):
            raise UserError(f"minutes and steps between checkpoints must be positive, got {minutes} and {steps}")
        self.minutes, self.steps = minutes, steps
        self._validated = self._terminated = False
        self._saved_step, self._saved_at = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.dirpath = Path(trainer.default_root_dir) / "checkpoints"
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        # In the place of Lightning's handler, which ends the run without saving, and talks to other ranks in mid-step.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._terminated = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._between_steps(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._between_steps(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            cast(GuardedModule, pl_module).check_last_loss()
        self._save(trainer)
        if trainer.is_global_zero:
            self._path("previous").unlink(missing_ok=True)

    def _between_steps(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if a checkpoint is due on any rank; ends the run if any rank has received SIGTERM."""
        any_rank = partial(trainer.strategy.reduce_boolean_decision, all=False)
        if not any_rank(self._due(trainer)):
            return
        terminated = any_rank(self._terminated)
        if not terminated and any_rank(not cast(GuardedModule, pl_module).loss_is_sound):
            return  # the next steps tell whether the training diverges
        self._save(trainer)
        if terminated:
            trainer.print(
                f"SIGTERM: saved {self._path('last')} at step {trainer.global_step}; the same command resumes."
            )
            # One process a node says so; the others end quietly, as Lightning kills the first when a child fails.
            raise SystemExit(TERMINATED if trainer.local_rank == 0 else 0)

    def _due(self, trainer: Trainer) -> bool:
        if self.steps and trainer.global_step >= self._saved_step + self.steps:
            return True
        return self._terminated or self._validated or time.monotonic() >= self._saved_at + 60 * self.minutes

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or trainer.global_step == self._saved_step:  # type: ignore[attr-defined]
            return
        new, last = self._path("new"), self._path("last")
        trainer.save_checkpoint(new, weights_only=False)
        if trainer.is_global_zero:
            if last.exists():
                os.replace(last, self._path("previous"))
            os.replace(new, last)
        trainer.strategy.barrier("rolling checkpoint")
        self._validated, self._saved_step, self._saved_at = False, trainer.global_step, time.monotonic()

    def _path(self, name: str) -> Path:
        return self.dirpath / f"{name}.ckpt"

    # --- where in the run a checkpoint is

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.num_training_batches == math.inf:
            return  # data without end: there are no epochs to have a place in
        steps_of_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        checkpoint["epoch"], checkpoint[STEP_KEY] = divmod(trainer.global_step, steps_of_epoch)
        self._place(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if STEP_KEY in checkpoint:
            self._place(trainer, checkpoint)

    def _place(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        position = checkpoint["epoch"], checkpoint[STEP_KEY], checkpoint["global_step"]
        checkpoint["loops"]["fit_loop"] |= counters(*position, trainer.accumulate_grad_batches)


def counters(epoch: int, step: int, steps: int, batches_a_step: int) -> dict[str, Any]:
    """State of Lightning's fit loop that resumes at step `step` of epoch `epoch` (both from 0).

    Lightning (2.6) infers from saved counters at which hook they were saved, not in the same way under max_steps as
    under max_epochs, and then repeats or omits validations, steps or counts. It goes on correctly from those that it
    saves at the end of a batch in mid-epoch; so the counters are always made to look like that, if need be at the end
    of a batch before the first.

    Args:
        steps: of the whole run so far.
        batches_a_step: how many batches are accumulated.
    """
    batch, batches = step * batches_a_step, steps * batches_a_step
    epochs = {"ready": epoch + 1, "started": epoch + (step > 0), "processed": epoch, "completed": epoch}
    optimizer = {"step": _progress(steps, step), "zero_grad": _progress(steps, step, "started")}
    return {
        "epoch_progress": {"total": epochs, "current": epochs},
        "epoch_loop.batch_progress": {
            "total": {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1},
            "current": {"ready": batch, "started": batch, "processed": batch, "completed": batch - 1},
            "is_last_batch": False,
        },
        "epoch_loop.state_dict": {"_batches_that_stepped": steps - 1},  # goes up at the end of a batch, too
        "epoch_loop.scheduler_progress": _progress(steps, step),
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": optimizer},
        "epoch_loop.val_loop.batch_progress": _progress(0, 0, "started", "processed") | {"is_last_batch": False},
    }


def _progress(total: int, current: int, *others: str) -> dict[str, Any]:
    names = ("ready", *others, "completed")
    return {"total": dict.fromkeys(names, total), "current": dict.fromkeys(names, current)}
