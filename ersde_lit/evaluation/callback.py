"""FID while training: every sampler at every NFE, with the averaged weights, at each validation."""

from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from torchmetrics import MeanMetric

from ersde_lit.data import ImageDataModule
from ersde_lit.denoisers import Denoiser
from ersde_lit.evaluation.classifier import classifier
from ersde_lit.evaluation.features import Features
from ersde_lit.evaluation.fid import FID, Statistics, statistics
from ersde_lit.evaluation.nearest import nearest_distances
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import Sampler

ROWS = 10  # of a picture, at most


class _Real(NamedTuple):
    """What is known of the real images before any is generated."""

    features: Features
    statistics: Statistics
    fid: float
    nearest: float


class FIDCallback(Callback):
    """Samples at each validation with every sampler at every NFE, and logs what came of it.

    - `fid/<sampler>/nfe<k>`: FID of the images of seeds first_seed .. first_seed + num_samples - 1 to the training
      images, label k drawn from seed k: the very images that `sample` makes of these seeds.
    - `fid/real`: FID of held-out real images (the "test" split, at most num_samples) to the training images: what a
      perfect model would get. FID falls with the number of images, so with fewer held out than sampled it is too high.
    - `nearest/<sampler>/nfe<k>`, `nearest/real`: mean distance to the nearest training image (`nearest_distances`), of
      the first `nearest_images` of the same images. Well below that of real images means learnt by heart.
    - a picture of fixed seeds for each, one row a class (of the first ten), in TensorBoard and in
      <default_root_dir>/samples.

    They can be monitored by a ModelCheckpoint from the first validation on. Weights are those of `ema_denoiser`. Blocks
    of `batch_size` seeds are dealt to the ranks, so neither the images nor the values depend on their number.

    Args:
        samplers: by the name they get in the logs.
        nfes: numbers of network calls an image.
        num_samples: images for each value, at least 2.
        features: "classifier" (a small network trained on the data set's labels, cached) or a `Features` of your own.
        batch_size: images sampled at a time.
        every_n_validations: evaluate at the first validation and every n-th after it, and at the last of the run.
        first_seed: of the images.
        nearest_images: how many images look for their nearest neighbour.
        columns: of the pictures.

    Raises:
        ValueError: an argument out of range, a trainer without an ImageDataModule, no labels for "classifier".
    """

    def __init__(
        self,
        samplers: dict[str, Callable[..., Any]],  # of Sampler; jsonargparse takes a Protocol for a function
        nfes: Sequence[int] = (5, 10, 20),
        num_samples: int = 1000,
        features: Literal["classifier"] | Features = "classifier",
        batch_size: int = 250,
        every_n_validations: int = 1,
        first_seed: int = 0,
        nearest_images: int = 500,
        columns: int = 10,
    ) -> None:
        if not samplers or not nfes:
            raise ValueError("FIDCallback needs at least one sampler and one NFE")
        least = {"num_samples": 2, "batch_size": 1, "every_n_validations": 1, "nearest_images": 1, "columns": 1}
        given = locals()
        for name, bound in least.items():
            if given[name] < bound:
                raise ValueError(f"FIDCallback: {name} must be at least {bound}, not {given[name]}")
        self.samplers, self.nfes, self.num_samples, self.features = samplers, nfes, num_samples, features
        self.batch_size, self.every_n_validations, self.first_seed = batch_size, every_n_validations, first_seed
        self.nearest_images, self.columns = nearest_images, columns
        self._real: _Real | None = None
        self._validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Measures the real images, once, on one rank: the others must see the same features to the last bit."""
        if stage in ("fit", "validate") and self._real is None and not _is_trial(trainer):
            real = self._measure_real(trainer, pl_module) if trainer.is_global_zero else None
            self._real = trainer.strategy.broadcast(real)

    def _measure_real(self, trainer: Trainer, pl_module: LightningModule) -> _Real:
        data, device = _data(trainer), trainer.strategy.root_device
        if isinstance(self.features, Features):
            features = self.features
        else:
            pl_module.print("FID: preparing classifier features (trained once for a data set, then cached)")
            features = classifier(data)
        reference = statistics(features, data.reference_images(), device)
        held_out = data.split("test").images[: self.num_samples]
        fid = FID(features, reference, sync=False).to(device)
        for images in held_out.split(self.batch_size):
            fid.update(images)
        nearest = nearest_distances(held_out[: self.nearest_images].to(device), data.split("train").images)
        real = _Real(features.cpu(), reference, fid.compute(), nearest.mean().item())
        pl_module.print(
            f"FID: {features.description}; {len(held_out)} held-out against {reference.num_images} training images: "
            f"{real.fid:.4g}, {real.nearest:.1f} grey levels from the nearest"
        )
        return real

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or _is_trial(trainer) or not self._due(trainer):
            return
        assert self._real is not None
        device, denoiser = pl_module.device, cast(Denoiser, pl_module.ema_denoiser)
        fid = FID(self._real.features.to(device), self._real.statistics).to(device)
        nearest = MeanMetric().to(device)
        values: dict[str, float] = {"fid/real": self._real.fid, "nearest/real": self._real.nearest}
        for name, sampler in self.samplers.items():
            for nfe in _calls(sampler, self.nfes):
                fid.reset()
                nearest.reset()
                for images, leading in self._blocks(trainer, denoiser, sampler, nfe):
                    fid.update(images)
                    if leading:
                        nearest.update(nearest_distances(images[:leading], _data(trainer).split("train").images))
                values[f"fid/{name}/nfe{nfe}"] = fid.compute()
                values[f"nearest/{name}/nfe{nfe}"] = nearest.compute().item()
                if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
                    self._draw(trainer, denoiser, name, sampler, nfe)
        for key, value in values.items():
            pl_module.log(key, value, sync_dist=True)  # equal on all ranks already; keeps Lightning from warning
        pl_module.print(self._table(values, trainer.global_step))

    @property
    def state_key(self) -> str:
        """Of its own for each of several in one trainer."""
        return self._generate_state_key(samplers=[*self.samplers], nfes=[*self.nfes], num_samples=self.num_samples)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def _due(self, trainer: Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        self._validations += 1
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        return last or (self._validations - 1) % self.every_n_validations == 0

    def _blocks(self, trainer: Trainer, denoiser: Denoiser, sampler: Sampler, nfe: int) -> Iterator[tuple[Tensor, int]]:
        """This rank's images, uint8, block by block, and how many of a block are among the first `nearest_images`."""
        seeds = range(self.first_seed, self.first_seed + self.num_samples)
        blocks = [seeds[start : start + self.batch_size] for start in range(0, self.num_samples, self.batch_size)]
        for block in blocks[trainer.global_rank :: trainer.world_size]:
            (made,) = generate(denoiser, sampler, block, nfe, batch_size=self.batch_size)
            yield quantise(made.images), sum(seed - self.first_seed < self.nearest_images for seed in block)

    def _draw(self, trainer: Trainer, denoiser: Denoiser, name: str, sampler: Sampler, nfe: int) -> None:
        rows = min(denoiser.num_classes, ROWS) or self.columns
        seeds = range(self.first_seed, self.first_seed + rows * self.columns)
        labels = torch.arange(rows).repeat_interleave(self.columns) if denoiser.num_classes else None
        made = generate(denoiser, sampler, seeds, nfe, labels, batch_size=self.batch_size)
        picture = image_grid(torch.cat([quantise(block.images).cpu() for block in made]), self.columns)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # that of `log`; global_step is one ahead of it
        if picture.shape[0] in (1, 3):
            save_png(picture, Path(trainer.default_root_dir) / "samples" / f"{name}-nfe{nfe}-step{step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"samples/{name}/nfe{nfe}", picture, step)

    def _table(self, values: dict[str, float], step: int) -> str:
        columns = sorted({nfe for sampler in self.samplers.values() for nfe in _calls(sampler, self.nfes)})
        table = Table("sampler", *(Column(f"NFE {nfe}", justify="right") for nfe in columns))

        def cell(key: str) -> str:
            return f"{values[f'fid/{key}']:.4g} ({values[f'nearest/{key}']:.1f})" if f"fid/{key}" in values else ""

        for name in self.samplers:
            table.add_row(name, *(cell(f"{name}/nfe{nfe}") for nfe in columns))
        with StringIO() as text:
            console = Console(file=text, width=100)
            console.print(f"FID of {self.num_samples} samples (grey levels to the nearest training image), step {step}")
            console.print(f"real images: {cell('real')}")
            console.print(table)
            return text.getvalue().rstrip()


def _calls(sampler: Sampler, nfes: Sequence[int]) -> list[int]:
    """The NFEs a sampler really runs when asked for these: Heun's are odd."""
    calls = getattr(sampler, "calls", None)
    return list(dict.fromkeys(calls(nfe) if calls else nfe for nfe in nfes))


def _data(trainer: Trainer) -> ImageDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageDataModule):
        raise ValueError("FIDCallback compares with real images: give the trainer an ImageDataModule")
    return data


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning sets it from outside
