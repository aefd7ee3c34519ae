"""Base of the LightningModules: a network trained on noisy images and the moving average of its weights."""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ersde_lit.data.order import run_seed
from ersde_lit.denoisers import NoiseDensity, Process
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.solvers import SeededNoise
from ersde_lit.training.ema import EMA, not_in_half
from ersde_lit.training.fsdp import FSDP2, is_sharded, shard
from ersde_lit.training.guard import GuardedModule
from ersde_lit.training.optimizer import AdamWConfig
from ersde_lit.training.randomness import image_seeds, uniform
from ersde_lit.training.weights import fitted

SPEC_KEY, IMAGES_KEY = "ersde_lit", "images_seen"
VALIDATION_LEVELS = 16  # noise levels of the validation loss: the quantiles (k + 1/2) / 16 of the training density


class AveragedModule(GuardedModule):
    """Trains `trained` and evaluates `averaged`, the moving average (EMA) of its weights.

    Both are ordinary parts of the module and of its checkpoints: nothing is ever swapped. The averages stay in float32
    or better, whatever the module is cast to. Logs `train/loss`, the mean over all images of a step.

    What is random depends on the seed of `seed_everything` and each image's number in the run, not on the number of
    devices, accumulation or resuming; dropout masks alone also depend on how a step is shared. In gradients NaN counts
    as 0 and an infinity as +-1e5, as published for EDM; "16-mixed" leaves such a step out.

    Subclasses define `trained`, `averaged` and `spec`, set `density`, `process`, `recipe` (of the optimiser) and `ema`,
    and call `start` at the end of their construction.

    Attributes:
        trained, averaged: the networks, parts of the module under names of its own.
        images_seen: by all devices, in the whole run.
    """

    density: NoiseDensity
    process: Process
    recipe: AdamWConfig
    ema: EMA

    def __init__(self) -> None:
        super().__init__()
        self.images_seen = 0
        self._images_at_step = 0
        self._loss_of_step = torch.zeros(())  # summed over this device's images
        self._evaluation_batch = 0

    @property
    def trained(self) -> nn.Module:
        raise NotImplementedError

    @property
    def averaged(self) -> nn.Module:
        raise NotImplementedError

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that rebuilds this module, weights excepted."""
        raise NotImplementedError

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return cast(Network, self.averaged).image_shape

    @property
    def num_classes(self) -> int:
        return cast(Network, self.averaged).num_classes

    def start(self) -> None:
        """Casts averages of half precision to float32; raises where a checkpoint could not hold the settings."""
        self.averaged.requires_grad_(False).eval()
        self._apply(lambda value: value)
        _ = self.spec

    def setup(self, stage: str) -> None:
        """Raises UserError where data and network disagree, or averaged weights would not be whole."""
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
        if self.device_mesh is not None and not is_sharded(self.trained):
            self.load_state_dict(self.trainer.strategy.broadcast(self.state_dict()))  # ranks may have drawn others
            shard(self.trained, self.device_mesh["data_parallel"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(not_in_half(self.averaged, fn), recurse)  # what `to` and precision plugins do

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.averaged.eval()  # for evaluation only: no dropout
        return self

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.train()  # a module that was loaded is in eval mode

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.recipe.optimizer(self.trained.parameters())
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            return self.recipe.factor(self.images_seen, step / max(total, 1))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def draw(self, x0: Tensor, draws: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """What a training batch x0 [B, C, H, W] is noised with: lam [B], eps like x0, and uniform [B, draws]."""
        seeds = image_seeds(run_seed(), self._dealt(self.images_seen, len(x0)))
        torch.manual_seed(seeds[0])  # for dropout
        eps = SeededNoise(seeds, x0.shape[1:], x0.device, x0.dtype).initial()
        u = uniform(seeds, 1 + draws, x0.device)
        return self.density.lam(u[:, 0], self.process), eps, u[:, 1:]

    def take(self, losses: Tensor) -> Tensor:
        """Counts the images of a training batch and returns the mean of their losses [B]."""
        self.images_seen += len(losses) * self.trainer.world_size
        self._loss_of_step = self._loss_of_step + losses.detach().sum()
        return losses.mean()

    def fixed_draw(self, x0: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """What an evaluation batch is noised with: lam [B] and eps like x0, the same at each evaluation."""
        index = self._indices(len(x0), batch_idx)
        u = ((torch.tensor(index, device=x0.device) % VALIDATION_LEVELS).float() + 0.5) / VALIDATION_LEVELS
        eps = SeededNoise(index, x0.shape[1:], device=x0.device, dtype=x0.dtype).initial()
        return self.density.lam(u, self.process), eps

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
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

    def log_evaluation(self, values: dict[str, Tensor], count: int) -> None:
        """Logs means over a batch of `count` images, to be averaged over the data."""
        for name, value in values.items():
            self.log(name, value, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=count)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[SPEC_KEY] = self.spec
        checkpoint[IMAGES_KEY] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where the weights are of another network, or have diverged."""
        super().on_load_checkpoint(checkpoint)
        if "state_dict" in checkpoint:  # FSDP2 loads the weights itself
            checkpoint["state_dict"] = fitted(checkpoint["state_dict"], self)
        if any(weight.dtype == torch.float64 for weight in checkpoint.get("state_dict", {}).values()):
            self.double()  # before the weights come: Lightning does it afterwards
        self.images_seen = self._images_at_step = checkpoint.get(IMAGES_KEY, 0)

    def _indices(self, count: int, batch_idx: int) -> range:
        """Positions in the data set of this rank's images of an evaluation batch."""
        if batch_idx == 0:
            self._evaluation_batch = count  # of all batches but the last
        return self._dealt(batch_idx * self._evaluation_batch * self.trainer.world_size, count)

    def _dealt(self, first: int, count: int) -> range:
        """The numbers of this rank's images among those that are dealt to the ranks in turn, from `first` on."""
        ranks = self.trainer.world_size
        return range(first + self.trainer.global_rank, first + count * ranks, ranks)
