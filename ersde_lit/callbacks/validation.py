"""Base class of callbacks that evaluate a model at validations, on all ranks, and how they show images and numbers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.ranks import Ranks
from ersde_lit.sampling.grid import save_png

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ValidationCallback(Callback, ABC):
    """Evaluates at the first validation, every `every_n_validations`-th after it, and the last of the run.

    Nothing is done in a sanity check or with fast_dev_run. Blocks of `batch_size` images are dealt to the ranks.

    Attributes:
        monitor: what a ModelCheckpoint may monitor from the first validation on; None: nothing.
        mode: its mode, "min" or "max".
    """

    mode: ClassVar[str]
    batch_size: int
    every_n_validations: int

    def __init__(self) -> None:
        self._ranks = Ranks()
        self._validations = 0

    @property
    @abstractmethod
    def monitor(self) -> str | None: ...

    @abstractmethod
    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is done once before the first validation; raises UserError where there can be none."""

    @abstractmethod
    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates and logs, on all ranks."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage in ("fit", "validate") and not _is_trial(trainer):
            self._ranks = Ranks.beside(trainer)
            self.prepare(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or _is_trial(trainer):
            return
        if self._due(trainer):
            self.evaluate(trainer, pl_module)
        elif self.monitor is not None:  # a run that goes on has no value yet, and ModelCheckpoint raises for that
            trainer.callback_metrics.setdefault(self.monitor, torch.tensor(math.nan))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._ranks = Ranks()  # a group of ranks cannot be copied to other processes

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def _due(self, trainer: Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        self._validations += 1
        return _is_last(trainer) or (self._validations - 1) % self.every_n_validations == 0

    def _check_counts(self, given: Mapping[str, Any], **least: int) -> None:
        for name, bound in least.items():
            if given[name] < bound:
                raise UserError(f"{type(self).__name__}: {name} must be at least {bound}, not {given[name]}")

    def _firsts(self, count: int) -> range:
        """The first image of each of this rank's blocks of `count` images."""
        return range(self._ranks.rank * self.batch_size, count, self._ranks.count * self.batch_size)


def _is_last(trainer: Trainer) -> bool:
    """Whether no validation follows this one in the training."""
    if trainer.global_step == trainer.max_steps:
        return True
    batches, every, gap = trainer.num_training_batches, trainer.check_val_every_n_epoch, trainer.val_check_batch or 0
    if batches == math.inf:
        return False
    of_epoch, left = batches - trainer.fit_loop.epoch_loop.batch_idx - 1, math.inf  # batches
    if every is not None and of_epoch < gap:  # the next validation is in a later epoch
        gap += of_epoch + (every - 1) * batches
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        left = of_epoch + (trainer.max_epochs - trainer.current_epoch - 1) * batches
    if trainer.max_steps >= 0:
        epochs, steps = divmod(
            trainer.max_steps - trainer.global_step, math.ceil(batches / trainer.accumulate_grad_batches)
        )
        left = min(left, epochs * batches + steps * trainer.accumulate_grad_batches)
    return left < gap


def precision_of(trainer: Trainer) -> str:
    """Precision of the network while it is evaluated: that of training, by autocast, as averages are float32."""
    return {"bf16": "bf16", "16": "fp16", "64": "fp64"}.get(str(trainer.precision).partition("-")[0], "fp32")


def autocast(trainer: Trainer) -> torch.autocast:
    """Autocast to `precision_of` a trainer."""
    dtype = DTYPES.get(precision_of(trainer), torch.float32)
    return torch.autocast(trainer.strategy.root_device.type, dtype, enabled=dtype != torch.float32)


def log_picture(trainer: Trainer, picture: Tensor, name: str, nfe: int) -> None:
    """Logs a grid of images, uint8 [C, H, W], to TensorBoard, Weights & Biases and <default_root_dir>/samples."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped  # that of `log`; global_step is one ahead of it
    if picture.shape[0] in (1, 3):
        save_png(picture, Path(trainer.default_root_dir) / "samples" / f"{name}-nfe{nfe}-step{step:07d}.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"samples/{name}/nfe{nfe}", picture, step)
        elif isinstance(logger, WandbLogger):
            pixels = rearrange(picture, "c h w -> h w c").numpy()
            logger.log_image(f"samples/{name}/nfe{nfe}", [pixels], step)


def table_below(lines: Sequence[str], cells: Mapping[str, Sequence[int]], cell: Callable[[str], str]) -> str:
    """Formats lines and below them a table by sampler and NFE, where `cell` is told "<sampler>/nfe<k>"."""
    columns = sorted({nfe for nfes in cells.values() for nfe in nfes})
    rows = Table("sampler", *(Column(f"NFE {nfe}", justify="right") for nfe in columns))
    for name in cells:
        rows.add_row(name, *(cell(f"{name}/nfe{nfe}") for nfe in columns))
    with StringIO() as text:
        console = Console(file=text, width=100, soft_wrap=True)
        console.print("\n".join(lines), highlight=False, markup=False)
        console.print(rows)
        return text.getvalue().rstrip()


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning sets it from outside
