"""LightningModule that trains a denoiser, for every process, preconditioning, prediction and network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ersde_lit.data import Augment
from ersde_lit.data.base import Batch
from ersde_lit.denoisers import Denoiser, Latents, NoiseDensity, NoiseLaw, Process
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PreconditioningName, PredictionName
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.restoration import RESTORER, restore
from ersde_lit.solvers import Sampler, SavedTables, Solver, registry
from ersde_lit.solvers.tableau import SAME_LEVEL
from ersde_lit.training.averaged import POWER_EMA_KEY, AveragedModule
from ersde_lit.training.classes import CLASSES_KEY, Classes
from ersde_lit.training.ema import EMA
from ersde_lit.training.optimizer import AdamWConfig
from ersde_lit.training.randomness import uniform
from ersde_lit.training.spec import describe

TABLES_KEY = "sampler_tables"  # of a checkpoint that carries tables


class DiffusionModule(AveragedModule):
    """Trains a denoiser; validates and samples with the moving average of its weights (see `AveragedModule`).

    Logs `train/loss`, the mean over all images of a step, and `val/loss` or `test/loss`, over fixed noise levels and
    fixed noise.

    Args:
        network: the raw network F.
        process: the noising process; VE() if None.
        preconditioning: scaling of the network's input and its noise condition: edm, vp, iddpm, ve, flow or eda.
        prediction: what the network's output means: edm (its own F), eps, x0, v, score or eda (eps, at weight 1 on x0).
        sigma_data: standard deviation of the data's pixels in [-1, 1], of preconditioning and prediction "edm".
        density: noise levels to train on; None takes the one its preconditioning was published with.
        label_dropout: probability of training an image as unconditional (label -1).
        optimizer: learning rate and its schedule.
        ema: half-life of the averaged weights.
        augment: how training images are changed, of which the network is told; None leaves them as they are.
        uncertainty: whether to learn the uncertainty of the loss at each noise level beside the network (Karras et al.
            2024, EDM2); `train/loss` includes it, `val/loss` does not.
        latents: what the images are where they are latents of an autoencoder; None: pixels.
        noise: what images are noised with; None: white Gaussian noise. With another law the model restores images
            rather than sampling them, and process and preconditioning are `EDA` and "eda".

    Attributes:
        tables: learned for the averaged weights as they are, which a checkpoint carries; None: none. The module samples
            with them by default. Training leaves them behind.

    Raises:
        ValueError: settings that do not go together; at `fit`, data or a strategy that do not go with them.
        FloatingPointError: at `fit`, the loss of 100 steps in a row was not finite, or what is to be saved is not.
    """

    TRAINED = "denoiser"
    SETTINGS = ("network", "process", "preconditioning", "prediction", "sigma_data", "latents", "uncertainty", "noise")
    BEFORE: ClassVar[dict[str, Any]] = {"latents": None, "uncertainty": False, "noise": None}
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
        noise: NoiseLaw | None = None,
    ) -> None:
        if not 0 <= label_dropout <= 1:
            raise UserError(f"label_dropout is a probability, got {label_dropout}")
        denoiser = Denoiser(network, process, preconditioning, prediction, sigma_data, uncertainty, latents, noise)
        density = density or PRECONDITIONINGS[preconditioning].density
        largest = float(density.lam(torch.tensor(1 - 1e-6, dtype=torch.float64), denoiser.process))
        if denoiser.restores and largest > denoiser.lam_max * (1 + SAME_LEVEL):
            raise UserError(
                f"the density reaches noise level {largest:.3g}, and degraded images are at {denoiser.lam_max:.3g}: "
                "leave density out, or take one that ends there"
            )
        if denoiser.restores and denoiser.num_classes and not label_dropout:
            raise UserError(
                "images to restore have no labels, and the model would know images with labels only: give the network "
                "num_classes 0, or the model label_dropout"
            )
        super().__init__(denoiser, denoiser.process, density, optimizer, ema)
        self.label_dropout, self.augment = label_dropout, augment
        self._classes: Classes | None = None  # nothing was trained yet
        self.tables: SavedTables | None = None
        self.power_ema: tuple[float, int] | None = None  # sigma_rel and images of weights that `posthoc` averaged
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
        } | ({"noise": describe(self.denoiser.noise)} if self.restores else {})  # as before there were other laws

    @property
    def restores(self) -> bool:
        """As of `Denoiser`."""
        return self.denoiser.restores

    def on_train_start(self) -> None:
        self.tables = self.power_ema = None
        data = Classes.of_data(getattr(self.trainer, "datamodule", None), self.num_classes)
        self._set_classes(data.after(self._classes, self.num_classes))  # a checkpoint has been read by now

    def _set_classes(self, classes: Classes) -> None:
        self._classes = classes
        for denoiser in (self.denoiser, self.ema_denoiser):
            denoiser.trained_classes, denoiser.class_names = classes.trained, classes.names

    def image_losses(self, batch: Batch, seeds: range) -> Tensor:
        x0, labels, *degraded = batch
        u = uniform(seeds, 2 + (self.augment.num_draws if self.augment else 0), x0.device)
        lam = self.density.lam(u[:, 0], self.process)
        labels = labels.masked_fill(u[:, 1] < self.label_dropout, -1)
        conditions = None
        if self.augment:
            x0, conditions = self.augment(x0, u[:, 2:])
            degraded = [self.augment(images, u[:, 2:])[0] for images in degraded]
        x0, noise = self._noised(x0, degraded, seeds)
        return self.denoiser.loss(x0, lam, noise, self._conditional(labels), conditions)

    def evaluation(self, batch: Batch, lam: Tensor, seeds: range) -> dict[str, Tensor]:
        x0, labels, *degraded = batch
        x0, noise = self._noised(x0, degraded, seeds)
        return {"loss": self.ema_denoiser.error(x0, lam, noise, self._conditional(labels)).mean()}

    def _noised(self, x0: Tensor, degraded: Sequence[Tensor], seeds: range) -> tuple[Tensor, Tensor]:
        """Encodes images, of pairs or not, and draws their noise."""
        law = self.denoiser.noise
        x0 = law.encode(x0)
        return x0, law.draw(seeds, x0, *map(law.encode, degraded))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._classes is not None:
            checkpoint[CLASSES_KEY] = self._classes.plain()
        if self.tables is not None:
            checkpoint[TABLES_KEY] = self.tables.plain()
        if self.power_ema is not None:
            checkpoint[POWER_EMA_KEY] = dict(zip(("sigma_rel", "images"), self.power_ema, strict=True))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._set_classes(Classes.read(checkpoint.get(CLASSES_KEY), self.num_classes))
        self.tables = SavedTables.of_plain(checkpoint[TABLES_KEY]) if TABLES_KEY in checkpoint else None
        average = checkpoint.get(POWER_EMA_KEY)
        self.power_ema = None if average is None else (float(average["sigma_rel"]), int(average["images"]))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Generates an image for each image of the predict set, of its class, with its index as seed."""
        x0, labels = batch[:2]
        return self.sample(self._indices(len(x0), batch_idx), self._conditional(labels))

    def sample(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | Tensor | None = None,
        solver: Sampler | Solver | str | Path | None = None,
        nfe: int = 20,
    ) -> Tensor:
        """Samples images in one batch: float [B, C, H, W] in about [-1, 1]; image k from seeds[k] and labels[k].

        A model of latents samples those; `ema_denoiser.latents.raw` makes them what its autoencoder decodes.

        Args:
            labels: class indices [B], -1 for unconditional; None draws them from the seeds, as everywhere.
            solver: a sampler, a solver (on the EDM grid) or the name of one in `solvers.registry`, or
                the path of a file of tables; None: the module's own `tables` if they have this nfe, else
                `ersde_lit.solvers.default(nfe)`.

        Raises:
            ValueError: labels that do not fit seeds or network, no such solver, or a model that restores images.
        """
        self.check_samples()
        if solver is None and self.tables is not None and nfe in self.tables.tables:
            solver = self.tables
        sampler = registry.as_sampler(solver)
        (block,) = generate(self.ema_denoiser, sampler, seeds, nfe, labels, batch_size=len(seeds))
        return block.images

    @torch.no_grad()
    def restore(
        self,
        degraded: Tensor,
        solver: Sampler | Solver | str | Path | None = None,
        nfe: int = 5,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Restores degraded images [B, C, H, W] in [-1, 1] by the averaged weights: see `sampling.restoration.restore`.

        Args:
            solver: a sampler with a table, a solver or the name of one; None: `sampling.restoration.RESTORER`.
        """
        sampler = RESTORER if solver is None else registry.as_sampler(solver)
        return restore(self.ema_denoiser, sampler, degraded.to(self.device), nfe, seeds)

    def check_samples(self) -> None:
        """Raises UserError for a model that restores images, which no noise leads to."""
        if self.restores:
            law = type(self.denoiser.noise).__name__
            raise UserError(f"the model was trained on {law}, so it restores images and samples none: take `restore`")

    def _conditional(self, labels: Tensor) -> Tensor | None:
        return labels if self.num_classes else None
