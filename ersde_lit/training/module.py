"""The LightningModule of denoisers: any process, preconditioning, prediction and network."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ersde_lit.data import Augment
from ersde_lit.denoisers import Denoiser, NoiseDensity, Process
from ersde_lit.denoisers.labels import labels_for
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PreconditioningName, PredictionName
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.renamed import current
from ersde_lit.solvers import Sampler, SeededNoise, Solver, registry
from ersde_lit.training.averaged import SPEC_KEY, AveragedModule
from ersde_lit.training.classes import CLASSES_KEY, Classes
from ersde_lit.training.ema import EMA
from ersde_lit.training.optimizer import AdamWConfig
from ersde_lit.training.spec import completed, describe


class DiffusionModule(AveragedModule):
    """Trains a denoiser; validates and samples with the moving average of its weights (`AveragedModule`).

    The two are `denoiser` and `ema_denoiser`. Logs `train/loss`, and `val/loss` or `test/loss` over fixed noise levels
    and fixed noise.

    Args:
        network: the raw network F.
        process: the noising process; VE() if None.
        preconditioning, prediction, sigma_data: as for `Denoiser`.
        density: noise levels to train on; None takes the one its preconditioning was published with.
        label_dropout: probability of training an image as unconditional (label -1).
        optimizer: learning rate and its schedule.
        ema: half-life of the average.
        augment: how training images are changed, of which the network is told; None leaves them as they are.

    Raises:
        ValueError: settings that do not go together; at `fit`, data or a strategy that do not go with them.
        FloatingPointError: at `fit`, the loss of 100 steps in a row was not finite, or what is to be saved is not.
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
        optimizer: AdamWConfig = AdamWConfig(),  # noqa: B008 (frozen)
        ema: EMA = EMA(),  # noqa: B008 (frozen)
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout <= 1:
            raise UserError(f"label_dropout is a probability, got {label_dropout}")
        self.denoiser = Denoiser(network, process, preconditioning, prediction, sigma_data)
        self.ema_denoiser = deepcopy(self.denoiser)
        self.process = self.denoiser.process
        self.density = density or PRECONDITIONINGS[preconditioning].density
        self.label_dropout = label_dropout
        self.recipe = optimizer
        self.ema = ema
        self.augment = augment
        self._classes: Classes | None = None  # nothing was trained yet
        self.start()

    @property
    def trained(self) -> Denoiser:
        return self.denoiser

    @property
    def averaged(self) -> Denoiser:
        return self.ema_denoiser

    @property
    def spec(self) -> dict[str, Any]:
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
            "augment": describe(self.augment),
        }

    def on_train_start(self) -> None:
        data = Classes.of_data(getattr(self.trainer, "datamodule", None), self.num_classes)
        self._know(data.after(self._classes, self.num_classes))  # what is resumed has been read by now

    def _know(self, classes: Classes) -> None:
        self._classes = classes
        for denoiser in (self.denoiser, self.ema_denoiser):
            denoiser.trained_classes, denoiser.class_names = classes.trained, classes.names

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, labels = batch
        lam, eps, u = self.draw(x0, 1 + (self.augment.num_draws if self.augment else 0))
        labels = labels.masked_fill(u[:, 0] < self.label_dropout, -1)
        x0, conditions = self.augment(x0, u[:, 1:]) if self.augment else (x0, None)
        return self.take(self.denoiser.loss(x0, lam, eps, self._known(labels), conditions))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._classes is not None:
            checkpoint[CLASSES_KEY] = self._classes.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError where the checkpoint is of another model, or its weights are, or has diverged."""
        kept, own = current(checkpoint[SPEC_KEY]), self.spec
        for name, value in (("network", self.denoiser.network), ("process", self.denoiser.process)):
            kept[name], own[name] = completed(kept[name], value), completed(own[name], value)
        for name in ("network", "process", "preconditioning", "prediction", "sigma_data"):
            if kept[name] != own[name]:
                raise UserError(f"the checkpoint is of another model: its {name} is {kept[name]}, not {own[name]}")
        super().on_load_checkpoint(checkpoint)
        self._know(Classes.read(checkpoint.get(CLASSES_KEY), self.num_classes))

    # --- evaluation, always with the averaged weights

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log_fixed_loss("val/loss", batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log_fixed_loss("test/loss", batch, batch_idx)

    def _log_fixed_loss(self, name: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x0, labels = batch
        x0 = x0.to(next(self.ema_denoiser.parameters()).dtype)  # half precision would blur the noise levels
        lam, eps = self.fixed_draw(x0, batch_idx)
        loss = self.ema_denoiser.loss(x0, lam, eps, self._known(labels)).mean()
        self.watch_validation(loss, batch_idx)
        self.log_evaluation({name: loss}, len(x0))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One generated image for each image of the predict set: its class, its index as seed."""
        x0, labels = batch
        return self.sample(self._indices(len(x0), batch_idx), self._known(labels))

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | Tensor | None = None,
        solver: Sampler | Solver | str | None = None,
        nfe: int = 20,
    ) -> Tensor:
        """Images from seeds, in one batch: float [B, C, H, W] in about [-1, 1]; image k from seeds[k] and labels[k].

        Args:
            labels: class indices [B], -1 for unconditional; None draws them from the seeds, as everywhere.
            solver: a sampler, a solver (on the EDM grid) or the name of one in `solvers.registry`; None:
                `ersde_lit.solvers.default(nfe)`.

        Raises:
            UserError: labels that do not fit seeds or network, or no such solver.
        """
        run = registry.as_sampler(solver)
        noise = SeededNoise(seeds, self.image_shape, device=self.device)
        chosen = labels_for(seeds, labels, self.num_classes, self.ema_denoiser.trained_classes)
        return run(self.ema_denoiser, noise, nfe, labels=None if chosen is None else chosen.to(self.device))

    def _known(self, labels: Tensor) -> Tensor | None:
        return labels if self.num_classes else None
