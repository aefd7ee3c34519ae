"""Training: one LightningModule for every process, preconditioning, prediction and network."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ersde_lit.denoisers import Denoiser, NoiseDensity, Process
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PreconditioningName, PredictionName
from ersde_lit.networks import Network
from ersde_lit.solvers import Sampler, SeededNoise, default
from ersde_lit.training.ema import EMA
from ersde_lit.training.optimizer import AdamW
from ersde_lit.training.spec import describe

SPEC_KEY, IMAGES_KEY = "ersde_lit", "images_seen"
VALIDATION_LEVELS = 16  # noise levels of the validation loss: the quantiles (k + 1/2) / 16 of the training density


class DiffusionModule(pl.LightningModule):
    """Trains a denoiser; validates and samples with the moving average of its weights.

    Both sets of weights are ordinary parts of the module (`denoiser`, `ema_denoiser`) and of its checkpoints: nothing
    is ever swapped. Logs `train/loss` and, over fixed noise levels and fixed noise, `val/loss` or `test/loss`.

    Args:
        network: the raw network F.
        process: the noising process; VE() if None.
        preconditioning, prediction, sigma_data: as for `Denoiser`.
        density: noise levels to train on; None takes the one its preconditioning was published with.
        label_dropout: probability of training an image as unconditional (label -1).
        optimizer: learning rate and its course.
        ema: how the averaged weights follow.
    """

    def __init__(
        self,
        network: Network,
        process: Process | None = None,
        preconditioning: PreconditioningName = "edm",
        prediction: PredictionName = "edm",
        sigma_data: float = 0.5,
        density: NoiseDensity | None = None,
        label_dropout: float = 0.0,
        optimizer: AdamW = AdamW(),  # noqa: B008 (frozen)
        ema: EMA = EMA(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout is a probability, got {label_dropout}")
        self.denoiser = Denoiser(network, process, preconditioning, prediction, sigma_data)
        self.ema_denoiser = deepcopy(self.denoiser).requires_grad_(False).eval()
        self.density = density or PRECONDITIONINGS[preconditioning].density
        self.label_dropout = label_dropout
        self.recipe = optimizer
        self.ema = ema
        self.images_seen = 0
        self._images_at_step = 0
        self._evaluation_batch = 0
        _ = self.spec  # raises now, not at the first checkpoint, where something cannot be kept in one

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.denoiser.image_shape

    @property
    def num_classes(self) -> int:
        return self.denoiser.num_classes

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that rebuilds this module, weights excepted."""
        denoiser = self.denoiser
        return {
            "network": describe(denoiser.network),
            "process": describe(denoiser.process),
            "preconditioning": denoiser.preconditioning,
            "prediction": denoiser.prediction,
            "sigma_data": describe(denoiser.sigma_data),
            "density": describe(self.density),
            "label_dropout": describe(self.label_dropout),
            "optimizer": describe(self.recipe),
            "ema": describe(self.ema),
        }

    def setup(self, stage: str) -> None:
        """Raises ValueError where data and network disagree."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        if tuple(data.image_shape) != tuple(self.image_shape):
            raise ValueError(
                f"the data's images are {tuple(data.image_shape)}, the network's {tuple(self.image_shape)}"
            )
        if self.num_classes not in (0, data.num_classes):
            raise ValueError(f"the data has {data.num_classes} classes, the network {self.num_classes}")

    def train(self, mode: bool = True) -> "DiffusionModule":
        super().train(mode)
        self.ema_denoiser.eval()  # averaged weights are for evaluation only: no dropout in them
        return self

    # --- training

    def on_fit_start(self) -> None:
        self.train()  # a module that was loaded is in eval mode
        # Ranks draw noise of their own, and a resumed run does not replay its beginning.
        torch.manual_seed(hash((torch.initial_seed(), self.global_rank, self.images_seen)) % 2**63)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, labels = batch
        if self.label_dropout:
            labels = labels.masked_fill(torch.rand(len(labels), device=self.device) < self.label_dropout, -1)
        lam = self.density.lam(torch.rand(len(x0), device=self.device), self.denoiser.process)
        loss = self.denoiser.loss(x0, lam, torch.randn_like(x0), self._known(labels)).mean()
        self.images_seen += len(x0) * self.trainer.world_size
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.recipe.optimizer(self.denoiser.parameters())
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            return self.recipe.factor(self.images_seen, step / max(total, 1))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        images = self.images_seen - self._images_at_step
        self._images_at_step = self.images_seen
        self.ema.update(self.ema_denoiser, self.denoiser, images, self.images_seen)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[SPEC_KEY] = self.spec
        checkpoint[IMAGES_KEY] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError where the checkpoint is of another model."""
        kept, own = checkpoint[SPEC_KEY], self.spec
        for name in ("network", "process", "preconditioning", "prediction", "sigma_data"):
            if kept[name] != own[name]:
                raise ValueError(f"the checkpoint is of another model: its {name} is {kept[name]}, not {own[name]}")
        self.images_seen = self._images_at_step = checkpoint.get(IMAGES_KEY, 0)

    # --- evaluation, always with the averaged weights

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log_fixed_loss("val/loss", batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log_fixed_loss("test/loss", batch, batch_idx)

    def _log_fixed_loss(self, name: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x0, labels = batch
        index = self._indices(len(x0), batch_idx)
        u = ((torch.tensor(index, device=self.device) % VALIDATION_LEVELS) + 0.5) / VALIDATION_LEVELS
        lam = self.density.lam(u, self.denoiser.process)
        eps = SeededNoise(index, x0.shape[1:], device=x0.device, dtype=x0.dtype).initial()
        loss = self.ema_denoiser.loss(x0, lam, eps, self._known(labels)).mean()
        self.log(name, loss, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=len(x0))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One generated image for each image of the predict set: its class, its index as seed."""
        x0, labels = batch
        return self.sample(self._indices(len(x0), batch_idx), labels)

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        labels: Tensor | None = None,
        sampler: Sampler | None = None,
        nfe: int = 20,
    ) -> Tensor:
        """Images from seeds, in one batch: float [B, C, H, W] in about [-1, 1]; image k from seeds[k] and labels[k].

        Args:
            labels: int64 [B], -1 for unconditional; None means unconditional.
            sampler: `ersde_lit.solvers.default(nfe)` if None.

        Raises:
            ValueError: labels that do not fit seeds or network, or none for one that was trained with labels only.
        """
        if labels is None and self.num_classes and not self.label_dropout:
            raise ValueError(f"this model was trained with labels only: pass labels in 0 .. {self.num_classes - 1}")
        sampler = sampler or default(nfe)
        noise = SeededNoise(seeds, self.image_shape, device=self.device)
        known = None
        if labels is not None and self.num_classes:
            known = torch.as_tensor(labels, device=self.device)
            if known.shape != (len(seeds),) or known.min() < -1 or known.max() >= self.num_classes:
                raise ValueError(f"labels are one class an image, -1 .. {self.num_classes - 1}, for {len(seeds)} seeds")
        return sampler(self.ema_denoiser, noise, nfe, labels=known)

    def _known(self, labels: Tensor) -> Tensor | None:
        return labels if self.num_classes else None

    def _indices(self, count: int, batch_idx: int) -> list[int]:
        """Positions in the data set of this rank's images, whose order a distributed sampler interleaves over ranks."""
        if batch_idx == 0:
            self._evaluation_batch = count  # of all batches but the last
        start = batch_idx * self._evaluation_batch
        return [(start + k) * self.trainer.world_size + self.trainer.global_rank for k in range(count)]
