"""LightningModule that trains a classifier of noisy images, for classifier guidance; loading its checkpoints."""

import math
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ersde_lit.data.base import Batch
from ersde_lit.denoisers import VE, LogUniform, NoiseDensity, Process, White
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PreconditioningName, check
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.training.averaged import SPEC_KEY, AveragedModule
from ersde_lit.training.checkpoint import read, rebuild
from ersde_lit.training.ema import EMA
from ersde_lit.training.optimizer import AdamWConfig
from ersde_lit.training.randomness import uniform
from ersde_lit.training.spec import describe

KIND = "noisy_classifier"  # the one entry under SPEC_KEY of its checkpoints, where a DiffusionModule's has its settings


class NoisyClassifier(AveragedModule):
    """Learns log p(k | y, lam) of y = x0 + lam eps from labelled images (Dhariwal & Nichol 2021).

    Called as ``classifier(y, lam)``, as `ClassifierGuidance` does, it uses the averaged weights (see `AveragedModule`).
    Logs `train/loss`, the cross entropy, and over fixed noise levels and fixed noise `val/loss` and `val/accuracy`
    (or `test/...`).

    Args:
        network: c_in y [B, C, H, W] and c_noise [B] to logits [B, num_classes], such as `ClassifierEncoder`.
        process: what the density refers to, and preconditionings other than "edm"; VE() if None.
        sigma_data: standard deviation of the data, for "edm".
        density: noise levels to train on; None takes `LogUniform`, since a sampler visits all of the process's.
        optimizer: learning rate and its schedule.
        preconditioning: scales what the network sees, as for `Denoiser`.
        ema: half-life of the averaged weights.

    Raises:
        ValueError: fewer than two classes, a preconditioning that does not go with the process, sigma_data that is not
            positive; at `fit`, data of another shape or classes.
    """

    TRAINED, KIND = "network", KIND
    SETTINGS = ("network", "process", "sigma_data", "preconditioning")
    network: Network
    ema_network: Network

    def __init__(
        self,
        network: Network,
        process: Process | None = None,
        sigma_data: float = 0.5,
        density: NoiseDensity | None = None,
        optimizer: AdamWConfig = AdamWConfig(),  # noqa: B008 (frozen)
        preconditioning: PreconditioningName = "edm",
        ema: EMA = EMA(),  # noqa: B008 (frozen)
    ) -> None:
        if network.num_classes < 2:
            raise UserError(f"a classifier needs a network with at least 2 classes, not {network.num_classes}")
        if not 0 < sigma_data < math.inf:
            raise UserError(f"sigma_data is a standard deviation, got {sigma_data}")
        process = process or VE()
        check(preconditioning, "eps", process)
        super().__init__(network, process, density or LogUniform(), optimizer, ema)
        self.preconditioning, self.sigma_data = preconditioning, sigma_data
        _ = self.spec  # raises now, not at the first checkpoint, where something cannot be kept in one

    @property
    def spec(self) -> dict[str, Any]:
        settings = {"sigma_data": describe(self.sigma_data), "preconditioning": self.preconditioning}
        return super().spec | settings

    def forward(self, y: Tensor, lam: Tensor) -> Tensor:
        """Computes log p(k | y, lam) [B, num_classes] of y [B, C, H, W] at lam [] or [B] by the averaged weights."""
        return self._log_p(self.ema_network, y, lam)

    def _log_p(self, network: Network, y: Tensor, lam: Tensor) -> Tensor:
        lam = lam.to(y.device, y.dtype, non_blocking=True).expand(len(y))
        preconditioning = PRECONDITIONINGS[self.preconditioning]
        c_in = preconditioning.c_in(lam, self.sigma_data, self.process).view(-1, 1, 1, 1)
        return network(c_in * y, preconditioning.c_noise(lam, self.process.t_of_lam(lam))).log_softmax(1)

    def image_losses(self, batch: Batch, seeds: range) -> Tensor:
        x0, labels = batch[:2]
        lam = self.density.lam(uniform(seeds, 1, x0.device)[:, 0], self.process)
        log_p = self._log_p(self.network, x0 + lam.view(-1, 1, 1, 1) * White().draw(seeds, x0), lam)
        return F.nll_loss(log_p, labels, reduction="none")

    def evaluation(self, batch: Batch, lam: Tensor, seeds: range) -> dict[str, Tensor]:
        x0, labels = batch[:2]
        log_p = self(x0 + lam.view(-1, 1, 1, 1) * White().draw(seeds, x0), lam)
        return {"loss": F.nll_loss(log_p, labels), "accuracy": (log_p.argmax(1) == labels).float().mean()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint.get("state_dict", {})
        if weights and not any(name.startswith("ema_") for name in weights):  # from before there were averages
            checkpoint["state_dict"] = weights | {f"ema_{name}": weight for name, weight in weights.items()}
        super().on_load_checkpoint(checkpoint)


def load_classifier(path: str | Path, trust: bool = False) -> NoisyClassifier:
    """Loads the classifier of a checkpoint, with raw and averaged weights, in eval mode on the CPU.

    Args:
        path: a .ckpt file written by `fit` or a Trainer; without averages (version 0.1), its raw weights serve.
        trust: also import network, process and density classes from outside `ersde_lit`.

    Raises:
        UserError: the file is missing, damaged, of no classifier, or names classes that are not trusted.
    """
    checkpoint = read(path)
    kept = checkpoint[SPEC_KEY]
    if not isinstance(kept.get(KIND), dict):
        raise UserError(f"checkpoint {path} holds no noisy classifier: is it that of a denoiser?")
    return rebuild(NoisyClassifier, kept[KIND], checkpoint, path, trust)
