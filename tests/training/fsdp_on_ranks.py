"""Training for two epochs on several gloo ranks. Run by test_fsdp.py and test_edm2.py."""

import os
import weakref

import lightning.pytorch as pl
import torch
from tiny import Pictures, network, trainer
from torch.distributed.tensor import DTensor

from ersde_lit.networks import EDM2UNet
from ersde_lit.training import EMA, AdamWConfig, AtomicCheckpointIO, DiffusionModule, PowerEMA, RollingCheckpoint, fsdp


def count_whole() -> list[int]:
    """Notes at every gathering of a weight how many that were gathered are still there, with it."""
    gather, gathered, counts = fsdp.whole, weakref.WeakSet(), []

    def whole(weight: torch.Tensor) -> torch.Tensor:
        made = gather(weight)
        gathered.add(made)
        counts.append(len(gathered))
        return made

    fsdp.whole = whole
    return counts


def train(folder: str, strategy: str, ranks: int) -> dict | None:
    """What the first rank holds, how many weights were whole at a time, and what it samples."""
    pl.seed_everything(0, verbose=False)
    counts = count_whole()
    for epochs in (1, 2):
        torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))  # ranks draw other weights: the first's count
        module = DiffusionModule(network(), optimizer=AdamWConfig(lr=1e-3), ema=EMA(half_life=40, ramp_up=0))
        runner = trainer(
            folder, max_epochs=epochs, strategy=strategy, devices=ranks, gradient_clip_val=1.0, num_sanity_val_steps=0,
            callbacks=[RollingCheckpoint(), PowerEMA(40)], plugins=[AtomicCheckpointIO()], enable_checkpointing=True,
            precision="64-true",
        )  # fmt: skip
        resumed = f"{folder}/checkpoints/last.ckpt" if epochs == 2 else None
        runner.fit(module, datamodule=Pictures(8), ckpt_path=resumed, weights_only=True)
    held = [w.to_local() if isinstance(w, DTensor) else w for w in module.denoiser.parameters()]
    images = module.sample(range(2 - runner.global_rank), nfe=3)  # not the same work on each rank
    if runner.is_global_zero:
        whole = sum(w.numel() for w in module.ema_denoiser.parameters())
        share = sum(w.numel() for w in held) / whole
        return {"held": share, "whole": max(counts, default=0), "images": images.tolist()}
    return None


def train_edm2(folder: str, strategy: str, ranks: int) -> None:
    """Two epochs of EDM2's network and loss, whose weights are normalised in each step."""
    pl.seed_everything(0, verbose=False)
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
    net = EDM2UNet(
        4, 1, 3, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[2], channels_per_head=8
    )
    runner = trainer(
        folder, strategy=strategy, devices=ranks, num_sanity_val_steps=0, enable_checkpointing=True,
        callbacks=[RollingCheckpoint()], plugins=[AtomicCheckpointIO()], precision="64-true",
        gradient_clip_val=1.0,
    )  # fmt: skip
    runner.fit(DiffusionModule(net, uncertainty=True, optimizer=AdamWConfig(lr=1e-2)), datamodule=Pictures(8))
