"""Base class of trained modules: random draws by image number, averaged weights, optimiser, checkpoints."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ersde_lit.data.base import Batch
from ersde_lit.data.order import run_seed
from ersde_lit.denoisers import NoiseDensity, Process
from ersde_lit.errors import UserError
from ersde_lit.training.ema import EMA, not_in_half
from ersde_lit.training.fsdp import FSDP2, average_whole_gradients, is_sharded, shard
from ersde_lit.training.guard import GuardedModule
from ersde_lit.training.optimizer import AdamWConfig
from ersde_lit.training.randomness import image_seeds
from ersde_lit.training.spec import describe, differences, in_words, with_defaults
from ersde_lit.training.weights import fitted

SPEC_KEY, IMAGES_KEY = "ersde_lit", "images_seen"
POWER_EMA_KEY = "power_ema"  # what `posthoc` made its averaged weights of
VALIDATION_LEVELS = 16  # noise levels of the validation loss: the quantiles (k + 1/2) / 16 of the training density


class AveragedModule(GuardedModule):
    """Trains the submodule named `TRAINED` on noised images and evaluates the moving average of its weights.

    Both are submodules (`<TRAINED>` and `ema_<TRAINED>`) and in every checkpoint. The averages stay in float32 or
    better, whatever the module is cast to.

    Random draws depend on the seed of `seed_everything` and each image's number in the run, not on the number of
    devices, accumulation or resuming; dropout masks alone also depend on how a step is shared. In gradients NaN counts
    as 0 and an infinity as +-1e5, as published for EDM (for EDM2 as 0); "16-mixed" leaves such a step out.
    """

    TRAINED: ClassVar[str]
    SETTINGS: ClassVar[tuple[str, ...]]  # what of `spec` a checkpoint must share for training to go on from it
    BEFORE: ClassVar[dict[str, Any]] = {}  # values of settings that older checkpoints do not name
    KIND: ClassVar[str | None] = None  # the key of `spec` under SPEC_KEY; None: it is not nested

    def __init__(
        self, trained: nn.Module, process: Process, density: NoiseDensity, optimizer: AdamWConfig, ema: EMA
    ) -> None:
        super().__init__()
        setattr(self, self.TRAINED, trained)
        setattr(self, f"ema_{self.TRAINED}", deepcopy(trained).requires_grad_(False).eval())
        self._apply(lambda value: value)  # the network may have been made in half precision
        self.process, self.density, self.recipe, self.ema = process, density, optimizer, ema
        self.images_seen = self._images_at_step = 0
        self._loss_of_step = torch.zeros(())  # summed over this device's images
        self._evaluation_batch = 0
        self._place: tuple[int, int, float] | None = None  # epoch, step and learning rate of a checkpoint

    # --- of subclasses

    network: Any  # may be a property

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.network.image_shape

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that rebuilds this module, except for its weights."""
        return {
            "network": describe(self.network),
            "process": describe(self.process),
            "density": describe(self.density),
            "optimizer": describe(self.recipe),
            "ema": describe(self.ema),
        }

    def image_losses(self, batch: Batch, seeds: range) -> Tensor:
        """Computes training losses [B] of a batch; image k is noised, and all else drawn, from seeds[k]."""
        raise NotImplementedError

    def evaluation(self, batch: Batch, lam: Tensor, seeds: range) -> dict[str, Tensor]:
        """Evaluates the averaged weights at noise levels lam [B]; returns means by name, "loss" among them."""
        raise NotImplementedError

    # --- set-up

    @property
    def trained(self) -> Any:
        """The submodule whose weights are trained."""
        return getattr(self, self.TRAINED)

    @property
    def averaged(self) -> Any:
        """The submodule with averaged weights."""
        return getattr(self, f"ema_{self.TRAINED}")

    def setup(self, stage: str) -> None:
        """Raises UserError where data and network disagree, or the strategy would shard the averaged weights."""
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
        """Shards the trained weights if the strategy is FSDP2."""
        if self.device_mesh is not None and not is_sharded(self.trained):
            for own in self.state_dict().values():  # ranks may have drawn others; one by one, as XL has 9 GB
                own.copy_(self.trainer.strategy.broadcast(own))
            shard(self.trained, self.device_mesh["data_parallel"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(not_in_half(self.averaged, fn), recurse)  # what `to` and precision plugins do

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.averaged.eval()  # no dropout in averaged weights
        return self

    # --- training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.train()  # a module that was loaded is in eval mode

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = len(batch[0])
        seeds = image_seeds(run_seed(), self._dealt(self.images_seen, images))
        torch.manual_seed(seeds[0])  # for dropout
        losses = self.image_losses(batch, seeds)
        self.images_seen += images * self.trainer.world_size
        self._loss_of_step = self._loss_of_step + losses.detach().sum()
        return losses.mean()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.recipe.optimizer(self.trained.parameters())
        total = max(self.trainer.estimated_stepping_batches, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.recipe.factor(self.images_seen, step / total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def check_length(self, begun: bool) -> None:
        """Checks, at `on_fit_start`, that training can go on from its checkpoint to the trainer's length.

        Args:
            begun: whether it is the same training, whose learning rate must have been that of this length so far.

        Raises:
            UserError: it cannot: fewer epochs than were trained, or a rate that has begun to fall over another length.
        """
        if self._place is None:
            return
        epoch, step, lr = self._place
        weights = "start a new one from its weights (fit --run NAME --init_from CHECKPOINT)"
        most = self.trainer.max_epochs
        if self.trainer.max_steps == -1 and most is not None and -1 < most < epoch:
            raise UserError(f"{epoch} epochs have been trained, more than max_epochs {most}: raise it, or {weights}")
        progress = step / max(self.trainer.estimated_stepping_batches, 1)
        now = self.recipe.lr * self.recipe.factor(self.images_seen, progress)
        if begun and not math.isclose(lr, now, rel_tol=1e-6, abs_tol=1e-12):
            raise UserError(
                f"the learning rate at step {step} was {lr:.4g}, and in a training of this length it is {now:.4g}: a "
                f"training whose rate has begun to fall keeps its length; {weights}"
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if is_sharded(self.trained):
            average_whole_gradients(self.trained)
        for weight in self.trained.parameters():
            if weight.grad is not None:
                torch.nan_to_num(weight.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=weight.grad)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        images, self._images_at_step = self.images_seen - self._images_at_step, self.images_seen
        self.ema.update(self.averaged, self.trained, images, self.images_seen)
        loss, self._loss_of_step = self._loss_of_step * self.trainer.world_size / images, torch.zeros(())
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.watch_step(loss)

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[SPEC_KEY] = {self.KIND: self.spec} if self.KIND else self.spec
        checkpoint[IMAGES_KEY] = self._images_at_step  # max_time may end a run within a step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where settings or weights are of another model, or the training had diverged."""
        super().on_load_checkpoint(checkpoint)
        if other := self.differences(checkpoint):
            raise UserError(f"the checkpoint is of another model: {in_words(other)}")
        if "state_dict" in checkpoint:  # FSDP2 loads the weights itself
            checkpoint["state_dict"] = fitted(checkpoint["state_dict"], self)
        if any(weight.dtype == torch.float64 for weight in checkpoint.get("state_dict", {}).values()):
            self.double()  # before the weights come: Lightning does it afterwards
        self.images_seen = self._images_at_step = checkpoint.get(IMAGES_KEY, 0)
        if schedules := checkpoint.get("lr_schedulers"):
            self._place = checkpoint["epoch"], checkpoint["global_step"], schedules[0]["_last_lr"][0]

    def differences(self, checkpoint: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Settings of the model that differ, by key: the checkpoint's and this module's.

        Raises:
            UserError: the checkpoint is of another kind of module.
        """
        kept, own = checkpoint[SPEC_KEY], self.spec
        if self.KIND is not None:
            kept = kept.get(self.KIND, {})
        if "network" not in kept:
            raise UserError(f"the checkpoint is not one of a {type(self).__name__}")
        values = {"network": self.network, "process": self.process}
        theirs, ours = (
            {name: with_defaults(spec.get(name, own.get(name)), values.get(name)) for name in self.SETTINGS}
            for spec in (self.BEFORE | kept, self.BEFORE | own)
        )
        return differences(theirs, ours)

    # --- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:
        dtype = next(self.averaged.parameters()).dtype  # half precision would blur the noise levels
        batch = tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)
        index = self._indices(len(batch[0]), batch_idx)
        u = ((torch.tensor(index, device=self.device) % VALIDATION_LEVELS).float() + 0.5) / VALIDATION_LEVELS
        lam = self.density.lam(u, self.process)
        values = self.evaluation(batch, lam, index)
        self.watch_validation(values["loss"], batch_idx)
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=len(index))

    def _indices(self, count: int, batch_idx: int) -> range:
        """Computes the positions in the data set of this rank's images of an evaluation batch."""
        if batch_idx == 0:
            self._evaluation_batch = count  # of all batches but the last
        return self._dealt(batch_idx * self._evaluation_batch * self.trainer.world_size, count)

    def _dealt(self, first: int, count: int) -> range:
        """Computes the numbers of this rank's images, where images from `first` on are dealt to the ranks in turn."""
        ranks = self.trainer.world_size
        return range(first + self.trainer.global_rank, first + count * ranks, ranks)
