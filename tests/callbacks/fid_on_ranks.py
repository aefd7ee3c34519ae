"""What FIDCallback logs on several gloo ranks. Run by test_fid.py."""

import tempfile
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from memory import Remembers
from torch.distributed.distributed_c10d import _set_pg_timeout

from ersde_lit.callbacks import FIDCallback
from ersde_lit.data import Digits
from ersde_lit.metrics import Features
from ersde_lit.metrics.cache import cache_folder
from ersde_lit.solvers import ERSDE, Sampler, TableSampler

PATIENCE = 5  # seconds that ranks wait for each other where Lightning makes them


class Impatient(Callback):
    """From when both are there: a rank that has just been started takes its time."""

    def setup(self, trainer, pl_module, stage):
        if trainer.world_size > 1:
            _set_pg_timeout(timedelta(seconds=PATIENCE))


class Slow(Features):
    """Costs the first of several ranks more than the others will wait."""

    num_features, batch_size, naps = 2, 1000, 2

    def forward(self, images):
        if self.naps and dist.is_initialized() and dist.get_rank() == 0:
            self.naps -= 1
            time.sleep(PATIENCE + 2)
        return torch.stack([images.float().mean((1, 2, 3)), images.float().std((1, 2, 3))], 1)


class Broken(Features):
    """Fails on the second of two ranks, at its part of the held-out images."""

    num_features, batch_size, calls = 2, 1000, 0

    def forward(self, images):
        self.calls += 1
        if dist.get_rank() == 1 and self.calls == 2:  # the reference is one batch a rank
            raise ValueError("features broke")
        return torch.stack([images.float().mean((1, 2, 3)), images.float().std((1, 2, 3))], 1)


class OneBad(Sampler):
    """A sampler whose image of one seed is not finite."""

    def __call__(self, denoiser, noise, nfe, labels=None, callback=None):
        if (noise._seeds == 15).any():
            raise FloatingPointError("the denoiser's output is not finite")
        return TableSampler(ERSDE(2))(denoiser, noise, nfe, labels)


def evaluate(ranks: int) -> dict[str, float] | None:
    """What the callbacks log; None on all ranks but the first."""
    sampler = TableSampler(ERSDE(2))
    metrics, limit = ("fid", "kid", "precision", "recall"), 1000.0
    whole = FIDCallback({"whole": sampler}, [4], 50, nearest_images=50, batch_size=50, metrics=metrics)  # for one rank
    parts = FIDCallback({"parts": sampler}, [3, 4], 50, nearest_images=25, batch_size=11, max_seconds=limit)
    slow = FIDCallback({"slow": sampler, "bad": OneBad()}, [2], 50, Slow(), batch_size=11, nearest_images=9)
    for path in cache_folder().glob("reference-*"):
        path.unlink(missing_ok=True)  # measured here, by so many
    trainer = Trainer(
        default_root_dir=tempfile.mkdtemp(), accelerator="cpu", strategy="ddp" if ranks > 1 else "auto",
        devices=ranks, logger=False, enable_progress_bar=False, callbacks=[Impatient(), whole, parts, slow],
    )  # fmt: skip
    trainer.validate(Remembers(data := Digits()), datamodule=data, verbose=False)
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items() if key != "val/loss"}
    return metrics if trainer.is_global_zero else None


def broken(ranks: int) -> str:
    """How a validation ends whose features fail on one rank: by its error on the first, and not by waiting."""
    callback = FIDCallback({"any": TableSampler(ERSDE(2))}, [2], 50, Broken(), batch_size=11, nearest_images=9)
    trainer = Trainer(
        default_root_dir=tempfile.mkdtemp(), accelerator="cpu", strategy="ddp", devices=ranks, logger=False,
        enable_progress_bar=False, callbacks=[callback],
    )  # fmt: skip
    try:
        trainer.validate(Remembers(data := Digits()), datamodule=data, verbose=False)
    except (ValueError, SystemExit) as error:
        return str(error)
    return "it went on"


def on_two_ranks() -> tuple[dict[str, float] | None, str]:
    return evaluate(2), broken(2)
