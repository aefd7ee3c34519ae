"""Trainer of the command `tune`: its bar, and the checkpoint of the learning under way."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from ersde_lit.callbacks.progress_bar import TrainingBar
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.files import disk_errors
from ersde_lit.progress import console
from ersde_lit.ranks import Ranks
from ersde_lit.training.checkpoint import AtomicCheckpointIO


class TuningCheckpointIO(AtomicCheckpointIO):
    """Checkpoints of a learning, which are none of a model; reading executes no code from them."""

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return TorchCheckpointIO.load_checkpoint(self, path, map_location, weights_only=True)


class KeepLast(Checkpoint):
    """Keeps the state every so many steps, between two of them, so that no part of a step is lost or done twice."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        if trainer.global_step and trainer.global_step % self.every == 0:
            with disk_errors(self.path, None):
                self.path.parent.mkdir(exist_ok=True)
                trainer.save_checkpoint(self.path)


def trainer(
    steps: int, minutes: float | None, machine: MachineOptions, ranks: Ranks, checkpoint: Path, every: int
) -> pl.Trainer:
    """A Trainer on the ranks that were started, with a bar on a terminal."""
    shown = console.is_terminal and ranks.is_first
    callbacks: list[Any] = [KeepLast(checkpoint, every), *([TrainingBar()] if shown else [])]
    if minutes is not None:
        callbacks.append(Timer(timedelta(minutes=minutes), verbose=False))
    return pl.Trainer(
        max_steps=steps,
        gradient_clip_val=1.0,
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks.count > 1 else "auto",
        callbacks=callbacks,
        plugins=[TuningCheckpointIO()],
        logger=False,
        enable_progress_bar=shown,
        enable_model_summary=False,
    )
