"""LightningModules of denoisers and classifiers, averaged weights, optimiser settings and checkpoints."""

from ersde_lit.training.checkpoint import AtomicCheckpointIO, load
from ersde_lit.training.ema import EMA
from ersde_lit.training.fsdp import FSDP2
from ersde_lit.training.module import DiffusionModule
from ersde_lit.training.noisy_classifier import NoisyClassifier, load_classifier
from ersde_lit.training.optimizer import AdamW, AdamWConfig
from ersde_lit.training.posthoc import reconstruct
from ersde_lit.training.resume import RollingCheckpoint
from ersde_lit.training.snapshots import PowerEMA

__all__ = [
    "EMA",
    "FSDP2",
    "AdamW",
    "AdamWConfig",
    "AtomicCheckpointIO",
    "DiffusionModule",
    "NoisyClassifier",
    "PowerEMA",
    "RollingCheckpoint",
    "load",
    "load_classifier",
    "reconstruct",
]
