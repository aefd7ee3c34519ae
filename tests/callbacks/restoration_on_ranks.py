"""What RestorationCallback logs on several gloo ranks. Run by test_restoration.py."""

import tempfile

from tiny import Larger, restores, trainer

from ersde_lit.callbacks import RestorationCallback
from ersde_lit.denoisers import FieldNoise
from ersde_lit.solvers import DDIM, ERSDE, TableSampler


def evaluate(ranks: int) -> dict[str, float] | None:
    """What the callback logs; None on all ranks but the first."""
    samplers = {"ddim": TableSampler(DDIM()), "noisy": TableSampler(ERSDE(order=2))}
    callback = RestorationCallback(samplers, [1, 3], num_images=13, batch_size=2)  # 4 blocks and 3
    strategy = "ddp" if ranks > 1 else "auto"
    runner = trainer(tempfile.mkdtemp(), callbacks=[callback], devices=ranks, strategy=strategy)
    runner.validate(restores(FieldNoise()), datamodule=Larger(), verbose=False)
    values = {key: value.item() for key, value in runner.callback_metrics.items() if key != "val/loss"}
    return values if runner.is_global_zero else None
