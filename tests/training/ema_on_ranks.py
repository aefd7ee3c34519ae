"""Power-function averages on several gloo ranks. Run by test_ema_snapshots.py."""

import os

import numpy as np
from test_ema_snapshots import PowerEMA, fit, flat


def track(folder: str) -> None:
    """Trains in a folder for each rank, and keeps what that rank has in a file."""
    ema, own = PowerEMA(48), f"{folder}/{os.environ['LOCAL_RANK']}"
    module = fit(own, ema, accelerator="cpu", devices=2, strategy="ddp")
    weights = flat(dict(module.denoiser.named_parameters()))
    np.savez(f"{own}.npz", raw=weights, average=flat(ema.averages[0.1]), images=ema.images)
