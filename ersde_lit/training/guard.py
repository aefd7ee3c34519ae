"""Detection of diverged training, which is ended before it is saved over good checkpoints."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ersde_lit.errors import UserError

MOMENTS = "optimiser's moments"
PATIENCE = 100  # unsound steps in a row that are tolerated
ABSURD = 1e6  # bound of a sound loss or weight; usual ones are about 1


class GuardedModule(pl.LightningModule):
    """LightningModule that ends its training, unsaved, when it has diverged.

    Lightning calls `on_save_checkpoint` on all ranks before any checkpoint is written; they decide together. One
    unsound loss in mid-run is tolerated, two in a row are not: where a loss is NaN its gradient counts as 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unsound_steps = torch.zeros((), dtype=torch.int64)  # in a row, up to the last
        self._validation_loss = torch.zeros(())  # the largest of this device's batches in the last validation

    def on_fit_start(self) -> None:
        self._unsound_steps, self._validation_loss = torch.zeros_like(self._unsound_steps), torch.zeros(())

    def loss_is_sound(self) -> bool:
        """Whether the loss of the last step was finite, and not absurd, on all ranks; to be called by all of them."""
        return not any_rank(self.trainer, self._unsound_steps)

    def watch_step(self, loss: Tensor) -> None:
        """Records a step's loss; raises FloatingPointError when those of the last `PATIENCE` steps were not sound."""
        self._unsound_steps = (self._unsound_steps + 1) * ~(loss < ABSURD)
        if self.global_step % PATIENCE == 0 and any_rank(self.trainer, self._unsound_steps >= PATIENCE):
            what = f"above {ABSURD:g} or not been finite for {PATIENCE} steps"
            self._end(f"the loss has been {what}, up to step {self.global_step}")

    def watch_validation(self, loss: Tensor, batch_idx: int) -> None:
        """Records the loss of a batch of validation data."""
        self._validation_loss = loss if batch_idx == 0 else torch.maximum(self._validation_loss, loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises FloatingPointError where weights, the optimiser's moments or losses are not sound."""
        if self._trainer is not None:  # otherwise somebody makes a checkpoint by hand
            self.check_sound(_kept(checkpoint))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where training would resume from weights or moments that are not sound."""
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        if spoilt := [what for what, tensors in _kept(checkpoint).items() if _spoilt(what, tensors)]:
            raise UserError(
                f"the checkpoint was saved after its training had diverged ({', '.join(spoilt)}): go on from an older "
                "one in another run (--run NAME --ckpt_path OLDER), or start anew"
            )

    def check_sound(self, kept: Mapping[str, Iterable[Tensor]]) -> None:
        """Checks what is about to be written; to be called by all ranks.

        Args:
            kept: the tensors, by what they are.

        Raises:
            FloatingPointError: these, or the losses, are not sound on some rank; names the last good checkpoint.
        """
        spoilt = {what: _spoilt(what, tensors) for what, tensors in kept.items()}
        spoilt["loss"] = bool(self._unsound_steps > 1)
        spoilt["validation loss"] = not self._validation_loss < ABSURD
        self._end_if(spoilt)

    def check_last_loss(self) -> None:
        """Checks the last losses at the end of training, on all ranks, as `check_sound` does.

        Under "16-mixed" one unsound step is tolerated: its update was skipped.
        """
        leaves_out = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        self._end_if({"loss": bool(self._unsound_steps > leaves_out)})

    def _end_if(self, spoilt: Mapping[str, bool]) -> None:
        if found := [what for what, is_spoilt in spoilt.items() if any_rank(self.trainer, is_spoilt)]:
            why = f"not finite, or above {ABSURD:g}: {', '.join(found)}"
            self._end(f"the training has diverged by step {self.global_step}, and is not saved there ({why})")

    def _end(self, why: str) -> NoReturn:
        if self.trainer.local_rank:  # one process a node says so, as in RollingCheckpoint
            raise SystemExit(0)
        good = _newest_checkpoint(self.trainer)
        begin = f", with --run NAME --ckpt_path; the last good checkpoint is {good}"
        raise FloatingPointError(
            f"{why}: lower the learning rate, clip gradients or use --trainer.precision 32"
            f"{begin if good else '; there is no good checkpoint'}"
        )


def _kept(checkpoint: Mapping[str, Any]) -> dict[str, Iterable[Tensor]]:
    """Groups the tensors of a checkpoint by what they are."""
    weights = checkpoint.get("state_dict", {})  # FSDP2 loads them itself
    return {
        "averaged weights": [weight for name, weight in weights.items() if name.startswith("ema_")],
        "trained weights": [weight for name, weight in weights.items() if not name.startswith("ema_")],
        MOMENTS: [
            value
            for optimizer in checkpoint.get("optimizer_states", [])
            for state in optimizer.get("state", {}).values()
            for value in state.values()
            if isinstance(value, Tensor)
        ],
    }


def _spoilt(what: str, tensors: Iterable[Tensor]) -> bool:
    """Whether a value is not finite or a weight above `ABSURD`; synchronises with the device once."""
    bound = math.inf if what == MOMENTS else ABSURD
    return bool(sum((~(tensor.abs() < bound)).any() for tensor in tensors))


def _newest_checkpoint(trainer: pl.Trainer) -> Any:
    """The newest checkpoint that this training wrote or started from; all were sound when written."""
    folders = [Path(folder) for c in trainer.checkpoint_callbacks if (folder := getattr(c, "dirpath", None))]
    written = [path for folder in folders for path in folder.glob("*.ckpt")]
    return max(written, key=lambda path: path.stat().st_mtime, default=trainer.ckpt_path)


def any_rank(trainer: pl.Trainer, decision: bool | Tensor) -> bool:
    """Whether the decision is true on any rank; to be called by all of them."""
    return bool(trainer.strategy.reduce_boolean_decision(bool(decision), all=False))
