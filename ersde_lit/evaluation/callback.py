"""FID and its kin while training: every sampler at every NFE, with the averaged weights, at each validation."""

import time
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from einops import rearrange
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from torchmetrics import MeanMetric

from ersde_lit.data import ImageDataModule
from ersde_lit.denoisers import Denoiser
from ersde_lit.denoisers.labels import trained_of
from ersde_lit.evaluation.features import Features, features_for
from ersde_lit.evaluation.nearest import nearest_distances
from ersde_lit.evaluation.protocol import title
from ersde_lit.evaluation.reference import KEEP, Reference, read_reference, reference_of
from ersde_lit.evaluation.scores import OF_FEATURES, MetricName, Scores
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import Sampler

ROWS = 10  # of a picture, at most


class _Real(NamedTuple):
    """What is known of the real images before any is generated."""

    features: Features
    reference: Reference
    values: dict[str, float]  # of held-out ones, as they are logged


class FIDCallback(Callback):
    """Samples at each validation with every sampler at every NFE, and logs what came of it.

    - `fid/<sampler>/nfe<k>`: FID of the images of seeds first_seed .. first_seed + num_samples - 1 to the reference,
      label k drawn from seed k: the very images that `sample` makes of these seeds. Other metrics likewise.
    - `fid/real`: FID of held-out real images (the "test" split, at most num_samples) to the reference: what a perfect
      model would get. FID falls with the number of images, so with fewer held out than sampled it is too high.
    - `nearest/<sampler>/nfe<k>`, `nearest/real`: mean distance to the nearest training image (`nearest_distances`), of
      the first `nearest_images` of the same images. Well below that of real images means learnt by heart.
    - a picture of fixed seeds for each, one row a class (of the first ten), in TensorBoard, Weights & Biases and
      <default_root_dir>/samples.

    They can be monitored by a ModelCheckpoint from the first validation on. Weights are those of `ema_denoiser`. Blocks
    of `batch_size` seeds are dealt to the ranks, so neither the images nor the values depend on their number. A block
    of images is in memory at a time.

    Args:
        samplers: by the name they get in the logs.
        nfes: numbers of network calls an image.
        num_samples: images for each value, at least 2.
        features: "classifier" (a small network trained on the data set's labels, cached), "inception", or a `Features`
            of your own.
        weights: the file of Inception's weights; downloaded if not given.
        reference: a file of statistics or images, as for `read_reference`; None: the training images. With a file,
            and features other than "classifier", any data will do; then nothing is known of real images.
        metrics: as for `Scores`.
        batch_size: images sampled at a time.
        every_n_validations: evaluate at the first validation and every n-th after it, and at the last of the run.
        first_seed: of the images.
        nearest_images: how many images look for their nearest neighbour.
        columns: of the pictures.
        max_seconds: once these are over, no other sampler or NFE is begun in this validation. The first is always
            measured, so monitor that; what is left out is named, and not logged this time.

    Raises:
        ValueError: an argument out of range, a trainer without an ImageDataModule, no labels for "classifier", no file
            or other metrics than the features or the reference can serve.
    """

    def __init__(
        self,
        samplers: dict[str, Callable[..., Any]],  # of Sampler; jsonargparse takes a Protocol for a function
        nfes: Sequence[int] = (5, 10, 20),
        num_samples: int = 1000,
        features: Literal["classifier", "inception"] | Features = "classifier",
        batch_size: int = 250,
        every_n_validations: int = 1,
        first_seed: int = 0,
        nearest_images: int = 500,
        columns: int = 10,
        max_seconds: float | None = None,
        weights: str | None = None,
        reference: str | None = None,
        metrics: Sequence[MetricName] = ("fid",),
    ) -> None:
        if not samplers or not nfes:
            raise ValueError("FIDCallback needs at least one sampler and one NFE")
        if not metrics:
            raise ValueError("FIDCallback needs at least one metric")
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"FIDCallback: max_seconds must be above 0, not {max_seconds}")
        least = {"num_samples": 2, "batch_size": 1, "every_n_validations": 1, "nearest_images": 1, "columns": 1}
        given = locals()
        for name, bound in least.items():
            if given[name] < bound:
                raise ValueError(f"FIDCallback: {name} must be at least {bound}, not {given[name]}")
        self.samplers, self.nfes, self.num_samples, self.features = samplers, nfes, num_samples, features
        self.batch_size, self.every_n_validations, self.first_seed = batch_size, every_n_validations, first_seed
        self.nearest_images, self.columns, self.max_seconds = nearest_images, columns, max_seconds
        self.weights, self.reference, self.metrics = weights, reference, tuple(metrics)
        self._real: _Real | None = None
        self._validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Measures the real images, once, on one rank: the others must see the same features to the last bit."""
        if stage in ("fit", "validate") and self._real is None and not _is_trial(trainer):
            real = self._measure_real(trainer, pl_module) if trainer.is_global_zero else None
            self._real = trainer.strategy.broadcast(real)

    def _measure_real(self, trainer: Trainer, pl_module: LightningModule) -> _Real:
        data, device = self._data(trainer), trainer.strategy.root_device
        if self.features == "classifier":
            pl_module.print("FID: preparing classifier features (trained once for a data set, then cached)")
        features = features_for(self.features, data, self.weights)
        keep = KEEP if OF_FEATURES & {*self.metrics} else 0
        if self.reference is not None:
            reference = read_reference(self.reference, features, device, keep_features=keep)
        else:
            assert data is not None
            reference = reference_of(data, features, device, keep_features=keep)
        scores = Scores(features, reference, self.metrics, sync=False).to(device)
        count = "" if reference.num_images is None else f"{reference.num_images} "
        if data is None:
            pl_module.print(f"FID: {features.description}; against {reference.description}")
            return _Real(features.cpu(), reference, {})
        held_out = data.split("test").images[: self.num_samples]
        for images in held_out.split(self.batch_size):
            scores.update(images)
        values = {f"{metric}/real": value for metric, value in scores.compute().items()}
        nearest = nearest_distances(held_out[: self.nearest_images].to(device), data.split("train").images)
        values["nearest/real"] = nearest.mean().item()
        against = f"{count}{'training images' if self.reference is None else 'images of the reference'}"
        pl_module.print(
            f"FID: {features.description}; {len(held_out)} held-out against {against}: "
            f"{values[f'{self.metrics[0]}/real']:.4g}, {values['nearest/real']:.1f} grey levels from the nearest"
        )
        return _Real(features.cpu(), reference, values)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or _is_trial(trainer) or not self._due(trainer):
            return
        assert self._real is not None
        denoiser = cast(Denoiser, pl_module.ema_denoiser)
        scores = Scores(self._real.features, self._real.reference, self.metrics).to(pl_module.device)
        values, start = dict(self._real.values), time.monotonic()
        left_out: list[str] = []
        for name, sampler in self.samplers.items():
            for nfe in _calls(sampler, self.nfes):
                if left_out or self._late(trainer, start, begun=len(values) > len(self._real.values)):
                    left_out.append(f"{name}/nfe{nfe}")
                    continue
                measured = self._measure(trainer, denoiser, scores, sampler, nfe)
                values |= {f"{metric}/{name}/nfe{nfe}": value for metric, value in measured.items()}
                if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
                    self._draw(trainer, denoiser, name, sampler, nfe)
        for key, value in values.items():
            pl_module.log(key, value, sync_dist=True)  # equal on all ranks already; keeps Lightning from warning
        pl_module.print(self._table(values, trainer.global_step))
        if left_out:
            pl_module.print(f"not begun within {self.max_seconds:g} seconds: {', '.join(left_out)}")

    def _measure(
        self, trainer: Trainer, denoiser: Denoiser, scores: Scores, sampler: Sampler, nfe: int
    ) -> dict[str, float]:
        """The metrics, and the distance to the nearest training image where there are such, over all ranks."""
        data, nearest = self._data(trainer), MeanMetric().to(scores.moments.device)
        scores.reset()
        for images, leading in self._blocks(trainer, denoiser, sampler, nfe):
            scores.update(images)
            if leading and data is not None:
                nearest.update(nearest_distances(images[:leading], data.split("train").images))
        values = scores.compute()
        return values if data is None else {**values, "nearest": nearest.compute().item()}

    def _late(self, trainer: Trainer, start: float, begun: bool) -> bool:
        """Whether time is up, by the first rank's clock."""
        if self.max_seconds is None or not begun:
            return False
        return trainer.strategy.broadcast(time.monotonic() - start > self.max_seconds)

    def _data(self, trainer: Trainer) -> ImageDataModule | None:
        """The real images; None where there are none and none are needed."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            return data
        if self.reference is None or self.features == "classifier":
            raise ValueError("FIDCallback compares with real images: give the trainer an ImageDataModule")
        return None

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
        classes = trained_of(denoiser.num_classes, getattr(denoiser, "trained_classes", None))[:ROWS]
        rows = len(classes) or self.columns
        seeds = range(self.first_seed, self.first_seed + rows * self.columns)
        labels = torch.tensor([*classes]).repeat_interleave(self.columns) if classes else None
        made = generate(denoiser, sampler, seeds, nfe, labels, batch_size=self.batch_size)
        picture = image_grid(torch.cat([quantise(block.images).cpu() for block in made]), self.columns)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # that of `log`; global_step is one ahead of it
        if picture.shape[0] in (1, 3):
            save_png(picture, Path(trainer.default_root_dir) / "samples" / f"{name}-nfe{nfe}-step{step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"samples/{name}/nfe{nfe}", picture, step)
            elif isinstance(logger, WandbLogger):
                pixels = rearrange(picture, "c h w -> h w c").numpy()
                logger.log_image(f"samples/{name}/nfe{nfe}", [pixels], step)

    def _table(self, values: dict[str, float], step: int) -> str:
        columns = sorted({nfe for sampler in self.samplers.values() for nfe in _calls(sampler, self.nfes)})
        table = Table("sampler", *(Column(f"NFE {nfe}", justify="right") for nfe in columns))

        metric = self.metrics[0]

        def cell(key: str) -> str:
            near = f" ({values[f'nearest/{key}']:.1f})" if f"nearest/{key}" in values else ""
            return f"{values[f'{metric}/{key}']:.4g}{near}" if f"{metric}/{key}" in values else ""

        for name in self.samplers:
            table.add_row(name, *(cell(f"{name}/nfe{nfe}") for nfe in columns))
        with StringIO() as text:
            console = Console(file=text, width=100)
            what = f"{title(metric)} of {self.num_samples} samples"
            console.print(f"{what} (grey levels to the nearest training image), step {step}")
            if real := cell("real"):
                console.print(f"real images: {real}")
            console.print(table)
            return text.getvalue().rstrip()


def _calls(sampler: Sampler, nfes: Sequence[int]) -> list[int]:
    """The NFEs a sampler really runs when asked for these: Heun's are odd."""
    calls = getattr(sampler, "calls", None)
    return list(dict.fromkeys(calls(nfe) if calls else nfe for nfe in nfes))


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning sets it from outside
