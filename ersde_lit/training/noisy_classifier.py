"""A classifier of noisy images, for classifier guidance: its LightningModule and its checkpoints."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ersde_lit.data.order import run_seed
from ersde_lit.denoisers import VE, LogUniform, NoiseDensity, Process
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PreconditioningName, check
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.solvers import SeededNoise
from ersde_lit.training.checkpoint import read, rebuild
from ersde_lit.training.guard import GuardedModule
from ersde_lit.training.module import IMAGES_KEY, SPEC_KEY, VALIDATION_LEVELS
from ersde_lit.training.optimizer import AdamW
from ersde_lit.training.randomness import image_seeds, uniform
from ersde_lit.training.spec import describe
from ersde_lit.training.weights import fitted

KIND = "noisy_classifier"  # the one entry under SPEC_KEY of its checkpoints, where a DiffusionModule's has its settings


class NoisyClassifier(GuardedModule):
    """Learns log p(k | y, lam) of y = x0 + lam eps from labelled images (Dhariwal & Nichol 2021).

    Called as ``classifier(y, lam)``, which is what `ClassifierGuidance` wants. Logs `train/loss`, the cross entropy,
    and over fixed noise levels and fixed noise `val/loss` and `val/accuracy`. What is random in training depends on the
    seed of `seed_everything` and on each image's number in the run, as in `DiffusionModule`.

    Args:
        network: c_in y [B, C, H, W] and c_noise [B] to logits [B, num_classes], such as `Encoder`.
        process: what the density refers to, and preconditionings other than "edm"; VE() if None.
        sigma_data: standard deviation of the data, for "edm".
        density: noise levels to train on; None takes `LogUniform`, since a sampler visits all of the process's.
        optimizer: learning rate and its course.
        preconditioning: scales what the network sees, as for `Denoiser`.

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
        optimizer: AdamW = AdamW(),  # noqa: B008 (frozen)
        preconditioning: PreconditioningName = "edm",
    ) -> None:
        super().__init__()
        if network.num_classes < 2:
            raise UserError(f"a classifier needs a network with at least 2 classes, not {network.num_classes}")
        if not 0 < sigma_data < math.inf:
            raise UserError(f"sigma_data is a standard deviation, got {sigma_data}")
        self.network = network
        self.process = process or VE()
        check(preconditioning, "eps", self.process)
        self.preconditioning = preconditioning
        self.sigma_data = sigma_data
        self.density = density or LogUniform()
        self.recipe = optimizer
        self.images_seen = 0
        _ = self.spec  # raises now, not at the first checkpoint, where something cannot be kept in one

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.network.image_shape

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that rebuilds this module, weights excepted."""
        return {
            "network": describe(self.network),
            "process": describe(self.process),
            "sigma_data": describe(self.sigma_data),
            "density": describe(self.density),
            "optimizer": describe(self.recipe),
            "preconditioning": self.preconditioning,
        }

    def forward(self, y: Tensor, lam: Tensor) -> Tensor:
        """log p(k | y, lam), [B, num_classes], from y [B, C, H, W] at lam ([] or [B])."""
        lam = lam.to(y.device, y.dtype, non_blocking=True).expand(len(y))
        preconditioning = PRECONDITIONINGS[self.preconditioning]
        c_in = preconditioning.c_in(lam, self.sigma_data, self.process).view(-1, 1, 1, 1)
        return self.network(c_in * y, preconditioning.c_noise(lam, self.process.t_of_lam(lam))).log_softmax(1)

    def setup(self, stage: str) -> None:
        """Raises ValueError where data and network disagree."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        its, own = (tuple(data.image_shape), data.num_classes), (tuple(self.image_shape), self.num_classes)
        if its != own:
            raise UserError(f"the data's images are {its[0]} in {its[1]} classes, the network's {own[0]} in {own[1]}")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, labels = batch
        rank, ranks = self.global_rank, self.trainer.world_size
        first, self.images_seen = self.images_seen, self.images_seen + len(x0) * ranks
        seeds = image_seeds(run_seed(), range(first + rank, self.images_seen, ranks))
        torch.manual_seed(seeds[0])  # for dropout
        lam = self.density.lam(uniform(seeds, 1, x0.device)[:, 0], self.process)
        eps = SeededNoise(seeds, x0.shape[1:], x0.device, x0.dtype).initial()
        loss = F.nll_loss(self(x0 + lam.view(-1, 1, 1, 1) * eps, lam), labels)
        self.log("train/loss", loss, prog_bar=True)
        self.watch_step(loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x0, labels = batch
        number = torch.arange(len(x0), device=self.device)
        lam = self.density.lam((number % VALIDATION_LEVELS + 0.5) / VALIDATION_LEVELS, self.process)
        eps = SeededNoise(number + (batch_idx << 24), x0.shape[1:], x0.device, x0.dtype).initial()
        log_p = self(x0 + lam.view(-1, 1, 1, 1) * eps, lam)
        loss, accuracy = F.nll_loss(log_p, labels), (log_p.argmax(1) == labels).float().mean()
        self.watch_validation(loss, batch_idx)
        for name, value in {"val/loss": loss, "val/accuracy": accuracy}.items():
            self.log(name, value, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=len(x0))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.recipe.optimizer(self.network.parameters())
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            return self.recipe.factor(self.images_seen, step / max(total, 1))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[SPEC_KEY] = {KIND: self.spec}
        checkpoint[IMAGES_KEY] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError where the weights are of another network, or have diverged."""
        super().on_load_checkpoint(checkpoint)
        checkpoint["state_dict"] = fitted(checkpoint["state_dict"], self)
        self.images_seen = checkpoint.get(IMAGES_KEY, 0)


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
