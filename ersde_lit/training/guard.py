"""Trainings that diverge: noticed, ended, and never saved over what was good."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from torch import Tensor

PATIENCE = 100  # steps in a row whose loss may fail to be sound
ABSURD = 1e6  # a loss from here on is not: that of a network whose output is zero is about 1


class GuardedModule(pl.LightningModule):
    """Ends its training rather than let anybody keep what has diverged.

    Whatever writes a checkpoint, Lightning first calls `on_save_checkpoint`, on all ranks; they decide together. Under
    "16-mixed" a single step's loss is no reason: the step was left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unsound_steps = torch.zeros((), dtype=torch.int64)  # in a row, up to the last
        self._validation_loss = torch.zeros(())  # the largest of this device's batches in the last validation

    @property
    def loss_is_sound(self) -> bool:
        """Whether this device's loss of the last step was finite, and not absurd."""
        return not self._unsound_steps

    def watch_step(self, loss: Tensor) -> None:
        """Takes a step's loss; raises FloatingPointError when those of the last `PATIENCE` steps were not sound."""
        self._unsound_steps = (self._unsound_steps + 1) * ~(loss < ABSURD)
        if self.global_step % PATIENCE == 0 and self._any_rank(self._unsound_steps >= PATIENCE):
            what = f"above {ABSURD:g} or not been finite for {PATIENCE} steps"
            self._end(f"the loss has been {what}, up to step {self.global_step}")

    def watch_validation(self, loss: Tensor, batch_idx: int) -> None:
        """Takes the loss of a batch of validation data."""
        self._validation_loss = loss if batch_idx == 0 else torch.maximum(self._validation_loss, loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises FloatingPointError where weights or the optimiser's moments are not finite, or losses not sound."""
        if self._trainer is None:  # somebody makes a checkpoint by hand
            return
        weights = checkpoint["state_dict"]
        moments = (
            value
            for optimizer in checkpoint.get("optimizer_states", [])
            for state in optimizer.get("state", {}).values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        self.check_finite(
            {
                "averaged weights": (weight for name, weight in weights.items() if name.startswith("ema_")),
                "trained weights": (weight for name, weight in weights.items() if not name.startswith("ema_")),
                "optimiser's moments": moments,
            }
        )

    def check_finite(self, kept: Mapping[str, Iterable[Tensor]]) -> None:
        """To be called by all ranks before something is written.

        Args:
            kept: tensors that are about to be, by what they are.

        Raises:
            FloatingPointError: these are not finite, or the losses not sound, on some rank; names the last good
                checkpoint.
        """
        spoilt = {what: _spoilt(tensors) for what, tensors in kept.items()}
        leaves_out = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        spoilt["loss"] = bool(self._unsound_steps > leaves_out)
        spoilt["validation loss"] = not self._validation_loss < ABSURD
        if found := [what for what, is_spoilt in spoilt.items() if self._any_rank(is_spoilt)]:
            why = f"not finite, or a loss above {ABSURD:g}: {', '.join(found)}"
            self._end(f"the training has diverged by step {self.global_step}, and is not saved there ({why})")

    def _any_rank(self, decision: bool | Tensor) -> bool:
        return bool(self.trainer.strategy.reduce_boolean_decision(bool(decision), all=False))

    def _end(self, why: str) -> NoReturn:
        if self.trainer.local_rank:  # one process a node says so, as in RollingCheckpoint
            raise SystemExit(0)
        good = _newest_checkpoint(self.trainer)
        raise FloatingPointError(
            f"{why}: lower the learning rate, clip gradients or use --trainer.precision 32; "
            + (f"the last good checkpoint is {good}" if good else "there is no good checkpoint")
        )


def _spoilt(tensors: Iterable[Tensor]) -> bool:
    """Whether anything is not finite; waits for the device once."""
    return bool(sum((~tensor.isfinite()).any() for tensor in tensors))


def _newest_checkpoint(trainer: pl.Trainer) -> Path | None:
    """Of those that this training has written or begun with: all are good."""
    folders = [Path(folder) for c in trainer.checkpoint_callbacks if (folder := getattr(c, "dirpath", None))]
    written = [path for folder in folders for path in folder.glob("*.ckpt")]
    begun = [Path(trainer.ckpt_path)] if trainer.ckpt_path else []
    return max(written, key=lambda path: path.stat().st_mtime, default=None) or next(iter(begun), None)
