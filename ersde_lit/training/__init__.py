"""Training: the LightningModule, averaged weights, the optimiser recipe, and checkpoints."""

from ersde_lit.training.checkpoint import AtomicCheckpointIO, load
from ersde_lit.training.ema import EMA
from ersde_lit.training.module import DiffusionModule
from ersde_lit.training.optimizer import AdamW

__all__ = ["EMA", "AdamW", "AtomicCheckpointIO", "DiffusionModule", "load"]
