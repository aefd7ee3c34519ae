"""Training: one LightningModule for every process, preconditioning, prediction and network."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ersde_lit.data import Augment
from ersde_lit.data.order import run_seed
from ersde_lit.denoisers import Denoiser, NoiseDensity, Process
from ersde_lit.denoisers.labels import labels_for
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PreconditioningName, PredictionName
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.solvers import Sampler, SeededNoise, Solver, registry
from ersde_lit.training.classes import CLASSES_KEY, Classes
from ersde_lit.training.ema import EMA, not_in_half
from ersde_lit.training.fsdp import FSDP2, is_sharded, shard
from ersde_lit.training.guard import GuardedModule
from ersde_lit.training.optimizer import AdamW
from ersde_lit.training.randomness import image_seeds, uniform
from ersde_lit.training.spec import completed, describe
from ersde_lit.training.weights import fitted

SPEC_KEY, IMAGES_KEY = "ersde_lit", "images_seen"
VALIDATION_LEVELS = 16  # noise levels of the validation loss: the quantiles (k + 1/2) / 16 of the training density


class DiffusionModule(GuardedModule):
    """Trains a denoiser; validates and samples with the moving average of its weights.

    Both sets of weights are ordinary parts of the module (`denoiser`, `ema_denoiser`) and of its checkpoints: nothing
    is ever swapped. The averages stay in float32 or better, whatever the module is cast to. Logs `train/loss`, the mean
    over all images of a step, and `val/loss` or `test/loss`, over fixed noise levels and fixed noise.

    What is random depends on the seed of `seed_everything` and each image's number in the run, not on the number of
    devices, accumulation or resuming; dropout masks alone also depend on how a step is shared. In gradients NaN counts
    as 0 and an infinity as +-1e5, as published for EDM; "16-mixed" leaves such a step out.

    Args:
        network: the raw network F.
        process: the noising process; VE() if None.
        preconditioning, prediction, sigma_data: as for `Denoiser`.
        density: noise levels to train on; None takes the one its preconditioning was published with.
        label_dropout: probability of training an image as unconditional (label -1).
        optimizer: learning rate and its course.
        ema: how the averaged weights follow.
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
        optimizer: AdamW = AdamW(),  # noqa: B008 (frozen)
        ema: EMA = EMA(),  # noqa: B008 (frozen)
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout <= 1:
            raise UserError(f"label_dropout is a probability, got {label_dropout}")
        self.denoiser = Denoiser(network, process, preconditioning, prediction, sigma_data)
        self.ema_denoiser = deepcopy(self.denoiser).requires_grad_(False).eval()
        self._apply(lambda value: value)  # the network may have been made in half precision
        self.density = density or PRECONDITIONINGS[preconditioning].density
        self.label_dropout = label_dropout
        self.recipe = optimizer
        self.ema = ema
        self.augment = augment
        self.images_seen = 0
        self._classes: Classes | None = None  # nothing was trained yet
        self._images_at_step = 0
        self._loss_of_step = torch.zeros(())  # summed over this device's images
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
            "augment": describe(self.augment),
        }

    def setup(self, stage: str) -> None:
        """Raises ValueError where data and network disagree, or averaged weights would not be whole."""
        if not isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy | FSDP2):
            raise UserError("averaged weights must be whole on every device: use --trainer.strategy ddp or fsdp2")
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        if (theirs := tuple(data.image_shape)) != (own := tuple(self.image_shape)):
            raise UserError(f"the data's images are {theirs}, the network's {own}")
        if self.num_classes not in (0, data.num_classes):
            raise UserError(f"the data has {data.num_classes} classes, the network {self.num_classes}")

    def configure_model(self) -> None:
        """Shards the weights that are trained, where the strategy is FSDP2."""
        if self.device_mesh is not None and not is_sharded(self.denoiser):
            self.load_state_dict(self.trainer.strategy.broadcast(self.state_dict()))  # ranks may have drawn others
            shard(self.denoiser, self.device_mesh["data_parallel"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DiffusionModule":
        return super()._apply(not_in_half(self.ema_denoiser, fn), recurse)  # what `to` and precision plugins do

    def train(self, mode: bool = True) -> "DiffusionModule":
        super().train(mode)
        self.ema_denoiser.eval()  # averaged weights are for evaluation only: no dropout in them
        return self

    # --- training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.train()  # a module that was loaded is in eval mode

    def on_train_start(self) -> None:
        data = Classes.of_data(getattr(self.trainer, "datamodule", None), self.num_classes)
        self._know(data.after(self._classes, self.num_classes))  # what is resumed has been read by now

    def _know(self, classes: Classes) -> None:
        self._classes = classes
        for denoiser in (self.denoiser, self.ema_denoiser):
            denoiser.trained_classes, denoiser.class_names = classes.trained, classes.names

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, labels = batch
        seeds = image_seeds(run_seed(), self._dealt(self.images_seen, len(x0)))
        torch.manual_seed(seeds[0])  # for dropout
        eps = SeededNoise(seeds, x0.shape[1:], x0.device, x0.dtype).initial()
        u = uniform(seeds, 2 + (self.augment.num_draws if self.augment else 0), x0.device)
        lam = self.density.lam(u[:, 0], self.denoiser.process)
        labels = labels.masked_fill(u[:, 1] < self.label_dropout, -1)
        x0, conditions = self.augment(x0, u[:, 2:]) if self.augment else (x0, None)
        losses = self.denoiser.loss(x0, lam, eps, self._known(labels), conditions)
        self.images_seen += len(x0) * self.trainer.world_size
        self._loss_of_step = self._loss_of_step + losses.detach().sum()
        return losses.mean()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.recipe.optimizer(self.denoiser.parameters())
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            return self.recipe.factor(self.images_seen, step / max(total, 1))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for weight in self.denoiser.parameters():
            if weight.grad is not None:
                torch.nan_to_num(weight.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=weight.grad)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        images, self._images_at_step = self.images_seen - self._images_at_step, self.images_seen
        self.ema.update(self.ema_denoiser, self.denoiser, images, self.images_seen)
        loss, self._loss_of_step = self._loss_of_step * self.trainer.world_size / images, torch.zeros(())
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.watch_step(loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[SPEC_KEY] = self.spec
        checkpoint[IMAGES_KEY] = self.images_seen
        if self._classes is not None:
            checkpoint[CLASSES_KEY] = self._classes.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError where the checkpoint is of another model, or its weights are, or has diverged."""
        super().on_load_checkpoint(checkpoint)
        kept, own = dict(checkpoint[SPEC_KEY]), self.spec
        for name, value in (("network", self.denoiser.network), ("process", self.denoiser.process)):
            kept[name], own[name] = completed(kept[name], value), completed(own[name], value)
        for name in ("network", "process", "preconditioning", "prediction", "sigma_data"):
            if kept[name] != own[name]:
                raise UserError(f"the checkpoint is of another model: its {name} is {kept[name]}, not {own[name]}")
        if "state_dict" in checkpoint:  # FSDP2 loads the weights itself
            checkpoint["state_dict"] = fitted(checkpoint["state_dict"], self)
        if any(weight.dtype == torch.float64 for weight in checkpoint.get("state_dict", {}).values()):
            self.double()  # before the weights come: Lightning does it afterwards
        self.images_seen = self._images_at_step = checkpoint.get(IMAGES_KEY, 0)
        self._know(Classes.read(checkpoint.get(CLASSES_KEY), self.num_classes))

    # --- evaluation, always with the averaged weights

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log_fixed_loss("val/loss", batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log_fixed_loss("test/loss", batch, batch_idx)

    def _log_fixed_loss(self, name: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x0, labels = batch
        x0 = x0.to(next(self.ema_denoiser.parameters()).dtype)  # half precision would blur the noise levels
        index = self._indices(len(x0), batch_idx)
        u = ((torch.tensor(index, device=self.device) % VALIDATION_LEVELS).float() + 0.5) / VALIDATION_LEVELS
        lam = self.density.lam(u, self.denoiser.process)
        eps = SeededNoise(index, x0.shape[1:], device=x0.device, dtype=x0.dtype).initial()
        loss = self.ema_denoiser.loss(x0, lam, eps, self._known(labels)).mean()
        self.watch_validation(loss, batch_idx)
        self.log(name, loss, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=len(x0))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One generated image for each image of the predict set: its class, its index as seed."""
        x0, labels = batch
        return self.sample(self._indices(len(x0), batch_idx), self._known(labels))

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | Tensor | None = None,
        sampler: Sampler | Solver | str | None = None,
        nfe: int = 20,
        solver: Sampler | Solver | str | None = None,
    ) -> Tensor:
        """Images from seeds, in one batch: float [B, C, H, W] in about [-1, 1]; image k from seeds[k] and labels[k].

        Args:
            labels: class indices [B], -1 for unconditional; None draws them from the seeds, as everywhere.
            sampler: or else `solver`: a sampler, a solver (on the EDM grid) or the name of one in `solvers.registry`;
                `ersde_lit.solvers.default(nfe)` if neither is given.

        Raises:
            ValueError: labels that do not fit seeds or network, no such sampler, or two.
        """
        if sampler is not None and solver is not None:
            raise UserError("sampler and solver both say how to sample: leave one of them out")
        run = registry.as_sampler(solver if sampler is None else sampler)
        noise = SeededNoise(seeds, self.image_shape, device=self.device)
        chosen = labels_for(seeds, labels, self.num_classes, self.ema_denoiser.trained_classes)
        return run(self.ema_denoiser, noise, nfe, labels=None if chosen is None else chosen.to(self.device))

    def _known(self, labels: Tensor) -> Tensor | None:
        return labels if self.num_classes else None

    def _indices(self, count: int, batch_idx: int) -> range:
        """Positions in the data set of this rank's images of an evaluation batch."""
        if batch_idx == 0:
            self._evaluation_batch = count  # of all batches but the last
        return self._dealt(batch_idx * self._evaluation_batch * self.trainer.world_size, count)

    def _dealt(self, first: int, count: int) -> range:
        """The numbers of this rank's images among those that are dealt to the ranks in turn, from `first` on."""
        ranks = self.trainer.world_size
        return range(first + self.trainer.global_rank, first + count * ranks, ranks)
