"""The LightningModule of classifiers of noisy images, for classifier guidance, and its checkpoints."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ersde_lit.denoisers import VE, LogUniform, NoiseDensity, Process
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PreconditioningName, check
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.training.averaged import SPEC_KEY, AveragedModule
from ersde_lit.training.checkpoint import read, rebuild
from ersde_lit.training.ema import EMA
from ersde_lit.training.optimizer import AdamWConfig
from ersde_lit.training.spec import describe
from ersde_lit.training.weights import plain_name

KIND = "noisy_classifier"  # the one entry under SPEC_KEY, where a DiffusionModule's checkpoint has its settings


class NoisyClassifier(AveragedModule):
    """Learns log p(k | y, lam) of y = x0 + lam eps from labelled images (Dhariwal & Nichol 2021).

    Called as ``classifier(y, lam)``, as `ClassifierGuidance` does, it uses the moving average of its weights
    (`AveragedModule`); the two networks are `network` and `ema_network`. Logs `train/loss`, the cross entropy, and over
    fixed noise levels and fixed noise `val/loss` and `val/accuracy` (or `test/...`).

    Args:
        network: c_in y [B, C, H, W] and c_noise [B] to logits [B, num_classes], such as `ClassifierEncoder`.
        process: what the density refers to, and preconditionings other than "edm"; VE() if None.
        sigma_data: standard deviation of the data, for "edm".
        density: noise levels to train on; None takes `LogUniform`, since a sampler visits all of the process's.
        optimizer: learning rate and its schedule.
        preconditioning: scales what the network sees, as for `Denoiser`.
        ema: half-life of the average.

    Raises:
        ValueError: fewer than two classes, a preconditioning that does not go with the process, sigma_data that is not
            positive; at `fit`, data of another shape or classes.
    """

    def __init__(
        self,
        network: Network,
        process: Process | None = None,
        sigma_data: float = 0.5,
        density: NoiseDensity | None = None,
        optimizer: AdamWConfig = AdamWConfig(),  # noqa: B008 (frozen)
        preconditioning: PreconditioningName = "edm",
        ema: EMA = EMA(),  # noqa: B008
    ) -> None:
        super().__init__()
        if network.num_classes < 2:
            raise UserError(f"a classifier needs a network with at least 2 classes, not {network.num_classes}")
        if not 0 < sigma_data < math.inf:
            raise UserError(f"sigma_data is a standard deviation, got {sigma_data}")
        self.network, self.ema_network = network, deepcopy(network)
        self.process = process or VE()
        check(preconditioning, "eps", self.process)
        self.preconditioning = preconditioning
        self.sigma_data = sigma_data
        self.density = density or LogUniform()
        self.recipe = optimizer
        self.ema = ema
        self.start()

    @property
    def trained(self) -> Network:
        return self.network

    @property
    def averaged(self) -> Network:
        return self.ema_network

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "network": describe(self.network),
            "process": describe(self.process),
            "sigma_data": describe(self.sigma_data),
            "density": describe(self.density),
            "optimizer": describe(self.recipe),
            "preconditioning": self.preconditioning,
            "ema": describe(self.ema),
        }

    def forward(self, y: Tensor, lam: Tensor) -> Tensor:
        """log p(k | y, lam), [B, num_classes], from y [B, C, H, W] at lam ([] or [B])."""
        return self._log_p(self.ema_network, y, lam)

    def _log_p(self, network: Network, y: Tensor, lam: Tensor) -> Tensor:
        lam = lam.to(y.device, y.dtype, non_blocking=True).expand(len(y))
        preconditioning = PRECONDITIONINGS[self.preconditioning]
        c_in = preconditioning.c_in(lam, self.sigma_data, self.process).view(-1, 1, 1, 1)
        return network(c_in * y, preconditioning.c_noise(lam, self.process.t_of_lam(lam))).log_softmax(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, labels = batch
        lam, eps, _ = self.draw(x0)
        log_p = self._log_p(self.network, x0 + lam.view(-1, 1, 1, 1) * eps, lam)
        return self.take(F.nll_loss(log_p, labels, reduction="none"))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log_fixed("val", batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log_fixed("test", batch, batch_idx)

    def _log_fixed(self, stage: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x0, labels = batch
        lam, eps = self.fixed_draw(x0, batch_idx)
        log_p = self(x0 + lam.view(-1, 1, 1, 1) * eps, lam)
        loss, accuracy = F.nll_loss(log_p, labels), (log_p.argmax(1) == labels).float().mean()
        self.watch_validation(loss, batch_idx)
        self.log_evaluation({f"{stage}/loss": loss, f"{stage}/accuracy": accuracy}, len(x0))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[SPEC_KEY] = {KIND: self.spec}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of `AveragedModule`; checkpoints of before there were averages have the raw weights for them."""
        weights = checkpoint.get("state_dict", {})
        if not any(plain_name(name).startswith("ema_network.") for name in weights):
            checkpoint["state_dict"] = {**weights, **{f"ema_{name}": value.clone() for name, value in weights.items()}}
        super().on_load_checkpoint(checkpoint)


def load_classifier(path: str | Path, trust: bool = False) -> NoisyClassifier:
    """The classifier a checkpoint holds, in eval mode on the CPU.

    Args:
        path: a .ckpt file that a Trainer wrote for a `NoisyClassifier`.
        trust: also import network, process and density classes from outside `ersde_lit`.

    Raises:
        ValueError: the file is missing, damaged, of no classifier, or names classes that are not trusted.
    """
    checkpoint = read(path)
    kept = checkpoint[SPEC_KEY]
    if not isinstance(kept.get(KIND), dict):
        raise UserError(f"checkpoint {path} holds no noisy classifier: is it that of a denoiser?")
    return rebuild(NoisyClassifier, kept[KIND], checkpoint, path, trust)
