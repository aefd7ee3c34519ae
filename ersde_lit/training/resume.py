"""Rolling checkpoints from which a run resumes exactly."""

import math
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from ersde_lit.errors import UserError
from ersde_lit.training.guard import GuardedModule, any_rank

STEP_KEY, BEFORE_KEY = "step_of_epoch", "before_validation"
SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class RollingCheckpoint(Checkpoint):
    """Keeps <default_root_dir>/checkpoints/last.ckpt at most `minutes` old, and the one before it as previous.ckpt.

    Checkpoints are written between two optimiser steps: as often as said here, before and after each validation, and at
    the end, when previous.ckpt is removed. A run that is resumed takes the steps it would have taken, also when the
    devices that share them have changed; with the same ones it ends with the same bits. What it had logged after the
    checkpoint is logged once more, with equal values. A validation that a kill cut short is run again.

    On SIGTERM and on Ctrl-C (SIGINT) the run is saved after the step or the validation it is at, and ends with exit
    code 128 + the signal's number: 143 and 130. A second Ctrl-C ends it at once. A run that diverges is not saved
    (`GuardedModule`). In mid-run a step whose loss is not finite is not either, but a later one.

    Args:
        minutes: between two checkpoints.
        steps: optimiser steps between two; None: only `minutes` counts.

    Raises:
        ValueError: an interval that is not positive.
    """

    dirpath: Path

    def __init__(self, minutes: float = 10.0, steps: int | None = None) -> None:
        if not minutes > 0 or (steps is not None and steps < 1):
            raise UserError(f"minutes and steps between checkpoints must be positive, got {minutes} and {steps}")
        self.minutes, self.steps = minutes, steps
        self._validated = False
        self._signal = 0
        self._saved, self._saved_at = (0, False), 0.0  # step, and whether before its validation; time
        self._before_validation = False  # of the checkpoint that is written, or was read
        self._one_step_more = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning ends a run at max_steps without the validation that is due there.
        self._one_step_more = self._before_validation and self._saved[0] == trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps += self._one_step_more

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.dirpath = Path(trainer.default_root_dir) / "checkpoints"
        self._saved, self._saved_at = (trainer.global_step, self._before_validation), time.monotonic()
        # In the place of Lightning's handlers, which end the run without saving, or talk to other ranks in mid-step.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, partial(self._on_signal, trainer))

    def _on_signal(self, trainer: Trainer, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one ends the run at once
            if trainer.validating and trainer.is_global_zero:
                print("Ctrl-C: the run ends after this validation, or now on a second Ctrl-C.", file=sys.stderr)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._between_steps(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        trainer.fit_loop.epoch_loop.max_steps -= self._one_step_more
        self._one_step_more = False
        if trainer.num_training_batches != math.inf and cast(GuardedModule, pl_module).loss_is_sound():
            self._save(trainer, before_validation=True)

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
        """Saves if a checkpoint is due on any rank; ends the run if any rank has received a signal."""
        if not any_rank(trainer, self._due(trainer)):
            return
        received = next((number for number in SIGNALS if any_rank(trainer, self._signal == number)), None)
        if received is None and not cast(GuardedModule, pl_module).loss_is_sound():
            return  # the next steps tell whether the training diverges
        self._save(trainer)
        if received is not None:
            trainer.print(f"{SIGNALS[received]}: saved {self._path('last')} at step {trainer.global_step}.")
            # One process a node says so; the others end quietly, as Lightning kills the first when a child fails.
            raise SystemExit(128 + received if trainer.local_rank == 0 else 0)

    def _due(self, trainer: Trainer) -> bool:
        if self.steps and trainer.global_step >= self._saved[0] + self.steps:
            return True
        return bool(self._signal) or self._validated or time.monotonic() >= self._saved_at + 60 * self.minutes

    def _save(self, trainer: Trainer, before_validation: bool = False) -> None:
        if trainer.fast_dev_run or (trainer.global_step, before_validation) == self._saved:  # type: ignore[attr-defined]
            return
        new, last = self._path("new"), self._path("last")
        self._before_validation = before_validation
        trainer.save_checkpoint(new, weights_only=False)
        self._before_validation = False
        if trainer.is_global_zero:
            if last.exists():
                os.replace(last, self._path("previous"))
            os.replace(new, last)
        trainer.strategy.barrier("rolling checkpoint")
        self._validated, self._saved_at = False, time.monotonic()
        self._saved = trainer.global_step, before_validation

    def _path(self, name: str) -> Path:
        return self.dirpath / f"{name}.ckpt"

    # --- where in the run a checkpoint is

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.num_training_batches == math.inf:
            return  # data without end: there are no epochs to have a place in
        steps_of_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        epoch, step = divmod(trainer.global_step, steps_of_epoch)
        if self._before_validation and step == 0:
            epoch, step = epoch - 1, steps_of_epoch
        checkpoint["epoch"], checkpoint[STEP_KEY], checkpoint[BEFORE_KEY] = epoch, step, self._before_validation
        self._place(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if STEP_KEY in checkpoint:
            self._before_validation = checkpoint.get(BEFORE_KEY, False)
            self._saved = checkpoint["global_step"], self._before_validation
            self._place(trainer, checkpoint)
        here = Path(trainer.default_root_dir).resolve() / "checkpoints"
        for state in checkpoint.get("callbacks", {}).values():
            if Path(state.get("dirpath", "")).parts[-2:] == here.parts[-2:]:  # else Lightning forgets the best
                _move_best(state, here)

    def _place(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        position = checkpoint["epoch"], checkpoint[STEP_KEY], checkpoint["global_step"]
        batches_a_step = trainer.accumulate_grad_batches
        checkpoint["loops"]["fit_loop"] |= counters(*position, batches_a_step, checkpoint.get(BEFORE_KEY, False))


def _move_best(state: dict[str, Any], here: Path) -> None:
    """Lets the state of a ModelCheckpoint be of the same run in another place, where its files have been moved to."""
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = str(here / Path(state[name]).name) if state[name] else ""
    state["best_k_models"] = {str(here / Path(path).name): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = str(here)


def counters(epoch: int, step: int, steps: int, batches_a_step: int, before_validation: bool = False) -> dict[str, Any]:
    """State of Lightning's fit loop that resumes at step `step` of epoch `epoch` (both from 0).

    Lightning (2.6) infers from saved counters at which hook they were saved, not in the same way under max_steps as
    under max_epochs, and then repeats or omits validations, steps or counts. It goes on correctly from those that it
    saves at the end of a batch in mid-epoch; so the counters are always made to look like that, if need be at the end
    of a batch before the first. Where a validation is still to come, they look as in its first batch.

    Args:
        steps: of the whole run so far.
        batches_a_step: how many batches are accumulated.
        before_validation: whether the validation after this step is still to come.
    """
    batch, batches = step * batches_a_step, steps * batches_a_step
    ended = int(before_validation)  # the last batch; else Lightning has yet to count it
    epochs = {"ready": epoch + 1, "started": epoch + (step > 0), "processed": epoch, "completed": epoch}
    val = {"ready": ended, "started": ended, "processed": 0, "completed": 0}
    optimizer = {"step": _progress(steps, step), "zero_grad": _progress(steps, step, "started")}
    return {
        "epoch_progress": {"total": epochs, "current": epochs},
        "epoch_loop.batch_progress": {
            "total": {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1 + ended},
            "current": {"ready": batch, "started": batch, "processed": batch, "completed": batch - 1 + ended},
            "is_last_batch": False,
        },
        "epoch_loop.state_dict": {"_batches_that_stepped": steps - 1},  # goes up at the end of a batch, too
        "epoch_loop.scheduler_progress": _progress(steps, step),
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": optimizer},
        "epoch_loop.val_loop.batch_progress": {"total": val, "current": val, "is_last_batch": False},
    }


def _progress(total: int, current: int, *others: str) -> dict[str, Any]:
    names = ("ready", *others, "completed")
    return {"total": dict.fromkeys(names, total), "current": dict.fromkeys(names, current)}
