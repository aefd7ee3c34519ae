"""Prints what FIDCallback logs, as JSON, on as many gloo ranks as its argument says. Run by test_callback.py."""

import json
import sys
import tempfile

from conftest import Remembers
from lightning.pytorch import Trainer

from ersde_lit.data import Digits
from ersde_lit.evaluation import FIDCallback
from ersde_lit.solvers import ERSDE, TableSampler


def evaluate(ranks: int) -> dict[str, float] | None:
    """What the callbacks log; None on all ranks but the first."""
    sampler = TableSampler(ERSDE(2))
    metrics, limit = ("fid", "kid", "precision", "recall"), 1000.0
    whole = FIDCallback({"whole": sampler}, [4], 50, nearest_images=50, batch_size=50, metrics=metrics)  # for one rank
    parts = FIDCallback({"parts": sampler}, [3, 4], 50, nearest_images=25, batch_size=11, max_seconds=limit)
    trainer = Trainer(
        default_root_dir=tempfile.mkdtemp(), accelerator="cpu", strategy="ddp" if ranks > 1 else "auto",
        devices=ranks, logger=False, enable_progress_bar=False, callbacks=[whole, parts],
    )  # fmt: skip
    trainer.validate(Remembers(data := Digits()), datamodule=data, verbose=False)
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items() if key != "val/loss"}
    return metrics if trainer.is_global_zero else None


if __name__ == "__main__" and (values := evaluate(int(sys.argv[1]))):
    print(json.dumps(values))
