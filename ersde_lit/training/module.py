"""LightningModule that trains a denoiser, for every process, preconditioning, prediction and network."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ersde_lit.data import Augment
from ersde_lit.denoisers import Denoiser, Latents, NoiseDensity, Process
from ersde_lit.denoisers.labels import labels_for
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PreconditioningName, PredictionName
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.solvers import Sampler, SavedTables, SeededNoise, Solver, registry
from ersde_lit.training.averaged import IMAGES_KEY, SPEC_KEY, VALIDATION_LEVELS, AveragedModule
from ersde_lit.training.classes import CLASSES_KEY, Classes
from ersde_lit.training.ema import EMA
from ersde_lit.training.optimizer import AdamWConfig
from ersde_lit.training.randomness import uniform
from ersde_lit.training.spec import describe

__all__ = ["IMAGES_KEY", "SPEC_KEY", "VALIDATION_LEVELS", "DiffusionModule"]

TABLES_KEY = "sampler_tables"  # of a checkpoint that carries tables


class DiffusionModule(AveragedModule):
    """Trains a denoiser; validates and samples with the moving average of its weights (see `AveragedModule`).

    Logs `train/loss`, the mean over all images of a step, and `val/loss` or `test/loss`, over fixed noise levels and
    fixed noise.

    Args:
        network: the raw network F.
        process: the noising process; VE() if None.
        preconditioning: scaling of the network's input and its noise condition: edm, vp, iddpm, ve or flow.
        prediction: what the network's output means: edm (its own F), eps, x0, v or score.
        sigma_data: standard deviation of the data's pixels in [-1, 1], of preconditioning and prediction "edm".
        density: noise levels to train on; None takes the one its preconditioning was published with.
        label_dropout: probability of training an image as unconditional (label -1).
        optimizer: learning rate and its schedule.
        ema: half-life of the averaged weights.
        augment: how training images are changed, of which the network is told; None leaves them as they are.
        uncertainty: whether to learn the uncertainty of the loss at each noise level beside the network (Karras et al.
            2024, EDM2); `train/loss` includes it, `val/loss` does not.
        latents: what the images are where they are latents of an autoencoder; None: pixels.

    Attributes:
        tables: learned for the averaged weights as they are, which a checkpoint carries; None: none. The module samples
            with them by default. Training leaves them behind.

    Raises:
        ValueError: settings that do not go together; at `fit`, data or a strategy that do not go with them.
        FloatingPointError: at `fit`, the loss of 100 steps in a row was not finite, or what is to be saved is not.
    """

    TRAINED = "denoiser"
    SETTINGS = ("network", "process", "preconditioning", "prediction", "sigma_data", "latents", "uncertainty")
    BEFORE: ClassVar[dict[str, Any]] = {"latents": None, "uncertainty": False}
    denoiser: Denoiser
    ema_denoiser: Denoiser

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
        uncertainty: bool = False,
        latents: Latents | None = None,
    ) -> None:
        if not 0 <= label_dropout <= 1:
            raise UserError(f"label_dropout is a probability, got {label_dropout}")
        denoiser = Denoiser(network, process, preconditioning, prediction, sigma_data, uncertainty, latents)
        density = density or PRECONDITIONINGS[preconditioning].density
        super().__init__(denoiser, denoiser.process, density, optimizer, ema)
        self.label_dropout, self.augment = label_dropout, augment
        self._classes: Classes | None = None  # nothing was trained yet
        self.tables: SavedTables | None = None
        _ = self.spec  # raises now, not at the first checkpoint, where something cannot be kept in one

    @property
    def network(self) -> Network:
        """The raw network that is trained."""
        return self.denoiser.network

    @property
    def spec(self) -> dict[str, Any]:
        return {
            **super().spec,
            "preconditioning": self.denoiser.preconditioning,
            "prediction": self.denoiser.prediction,
            "sigma_data": describe(self.denoiser.sigma_data),
            "label_dropout": describe(self.label_dropout),
            "augment": describe(self.augment),
            "uncertainty": self.denoiser.uncertainty is not None,
            "latents": describe(self.denoiser.latents),
        }

    def on_train_start(self) -> None:
        self.tables = None
        data = Classes.of_data(getattr(self.trainer, "datamodule", None), self.num_classes)
        self._set_classes(data.after(self._classes, self.num_classes))  # a checkpoint has been read by now

    def _set_classes(self, classes: Classes) -> None:
        self._classes = classes
        for denoiser in (self.denoiser, self.ema_denoiser):
            denoiser.trained_classes, denoiser.class_names = classes.trained, classes.names

    def image_losses(self, x0: Tensor, labels: Tensor, seeds: range, eps: Tensor) -> Tensor:
        u = uniform(seeds, 2 + (self.augment.num_draws if self.augment else 0), x0.device)
        lam = self.density.lam(u[:, 0], self.process)
        labels = labels.masked_fill(u[:, 1] < self.label_dropout, -1)
        x0, conditions = self.augment(x0, u[:, 2:]) if self.augment else (x0, None)
        return self.denoiser.loss(x0, lam, eps, self._conditional(labels), conditions)

    def evaluation(self, x0: Tensor, labels: Tensor, lam: Tensor, eps: Tensor) -> dict[str, Tensor]:
        return {"loss": self.ema_denoiser.error(x0, lam, eps, self._conditional(labels)).mean()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._classes is not None:
            checkpoint[CLASSES_KEY] = self._classes.plain()
        if self.tables is not None:
            checkpoint[TABLES_KEY] = self.tables.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._set_classes(Classes.read(checkpoint.get(CLASSES_KEY), self.num_classes))
        self.tables = SavedTables.of_plain(checkpoint[TABLES_KEY]) if TABLES_KEY in checkpoint else None

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Generates an image for each image of the predict set, of its class, with its index as seed."""
        x0, labels = batch
        return self.sample(self._indices(len(x0), batch_idx), self._conditional(labels))

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | Tensor | None = None,
        solver: Sampler | Solver | str | None = None,
        nfe: int = 20,
    ) -> Tensor:
        """Samples images in one batch: float [B, C, H, W] in about [-1, 1]; image k from seeds[k] and labels[k].

        A model of latents samples those; `ema_denoiser.latents.raw` makes them what its autoencoder decodes.

        Args:
            labels: class indices [B], -1 for unconditional; None draws them from the seeds, as everywhere.
            solver: a sampler, a solver (on the EDM grid) or the name of one in `solvers.registry`; None:
                the module's own `tables` if they have this nfe, else `ersde_lit.solvers.default(nfe)`.

        Raises:
            ValueError: labels that do not fit seeds or network, or no such solver.
        """
        noise = SeededNoise(seeds, self.image_shape, device=self.device)
        chosen = labels_for(seeds, labels, self.num_classes, self.ema_denoiser.trained_classes)
        labels = None if chosen is None else chosen.to(self.device)
        if solver is None and self.tables is not None and nfe in self.tables.tables:
            solver = self.tables
        return registry.as_sampler(solver)(self.ema_denoiser, noise, nfe, labels=labels)

    def _conditional(self, labels: Tensor) -> Tensor | None:
        return labels if self.num_classes else None
