"""Callback that logs FID and other metrics of samples, for every sampler at every NFE, at each validation."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ersde_lit.callbacks.fid_measure import RealImages, measure, sample_images
from ersde_lit.callbacks.progress_bar import images_shown
from ersde_lit.callbacks.validation import ValidationCallback, log_picture, precision_of, table_below
from ersde_lit.data import ImageDataModule
from ersde_lit.denoisers import Denoiser
from ersde_lit.denoisers.labels import trained_of
from ersde_lit.errors import UserError
from ersde_lit.metrics.choice import Choice, features_and_reference
from ersde_lit.metrics.features import Features
from ersde_lit.metrics.protocol import title
from ersde_lit.metrics.scores import MetricName
from ersde_lit.sampling.grid import image_grid
from ersde_lit.solvers import Sampler, TableSampler

ROWS = 10  # of a picture, at most


class FIDCallback(ValidationCallback):
    """Samples at each validation with every sampler at every NFE, and logs metrics and pictures.

    - `fid/<sampler>/nfe<k>`: FID of the images of seeds first_seed .. first_seed + num_samples - 1 to the reference,
      label k drawn from seed k: the very images that `sample` makes of these seeds. Other metrics likewise.
    - `fid/real`: FID of held-out real images (the "test" split, at most num_samples) to the reference: what a perfect
      model would get. FID falls with the number of images, so with fewer held out than sampled it is too high.
    - `nearest/<sampler>/nfe<k>`, `nearest/real`: mean distance to the nearest training image (`nearest_distances`), of
      the first `nearest_images` of the same images. Far below that of real images indicates memorisation.
    - a picture of fixed seeds for each, one row a class (of the first ten), in TensorBoard, Weights & Biases and
      <default_root_dir>/samples.

    They can be monitored by a ModelCheckpoint from the first validation on. Weights are those of `ema_denoiser`; the
    network works in the trainer's precision by autocast ("bf16-mixed" and "bf16-true" alike), solver and features in
    float32 without TF32. Blocks of `batch_size` seeds are dealt to the ranks, and so is the reference, so neither the
    images nor the values depend on their number. A block of images is in memory at a time. Where a sample is not
    finite, the values of its sampler and NFE are NaN, with a warning, and training goes on.

    Args:
        samplers: by the name they get in the logs.
        nfes: numbers of network calls an image.
        num_samples: images for each value, at least 2.
        features: "classifier" (a small network trained on the data set's labels, cached), "inception",
            "inception_or_classifier" (the second where Inception's weights cannot be had), "dinov2", "efficientnet"
            (the same for all data, and offline), or a `Features` of your own.
        weights: the file of the features' weights, if it is not the usual one.
        reference: a file of statistics or images, as for `read_reference`; None: the training images. With a file,
            and features other than "classifier", any data will do; then nothing is known of real images.
        metrics: as for `Scores`.
        batch_size: images sampled at a time.
        every_n_validations: evaluate at the first validation and every n-th after it, and at the last of the run.
        first_seed: of the images.
        nearest_images: how many images look for their nearest neighbour; 0: none, and nothing is logged of it.
        columns: of the pictures.
        max_seconds: once these are over, no other sampler or NFE is begun in this validation. The first is always
            measured, so monitor that; what is left out is named, and not logged this time.

    Raises:
        ValueError: an argument out of range, a trainer without an ImageDataModule, no labels for "classifier", no file
            or other metrics than the features or the reference can serve.
    """

    mode: ClassVar[str] = "min"

    def __init__(
        self,
        samplers: dict[str, Sampler],
        nfes: Sequence[int] = (5, 10, 20),
        num_samples: int = 1000,
        features: Choice | Features = "classifier",
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
        super().__init__()
        if not (samplers and nfes and metrics):
            raise UserError("FIDCallback needs at least one sampler, one NFE and one metric")
        if max_seconds is not None and not max_seconds > 0:
            raise UserError(f"FIDCallback: max_seconds must be above 0, not {max_seconds}")
        self._check_counts(locals(), num_samples=2, batch_size=1, every_n_validations=1, first_seed=0)
        self._check_counts(locals(), nearest_images=0, columns=1)
        self.samplers, self.nfes, self.num_samples, self.features = samplers, nfes, num_samples, features
        self.batch_size, self.every_n_validations, self.first_seed = batch_size, every_n_validations, first_seed
        self.nearest_images, self.columns, self.max_seconds = nearest_images, columns, max_seconds
        self.weights, self.reference, self.metrics = weights, reference, tuple(metrics)
        self._real: RealImages | None = None
        self._measured: ImageDataModule | None = None  # the data of `_real`

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the real images, once; raises UserError now, not hours later, where a table is missing."""
        if not hasattr(pl_module, "ema_denoiser"):
            raise UserError(f"FIDCallback samples a DiffusionModule, and a {type(pl_module).__name__} has no denoiser")
        if getattr(pl_module, "restores", False):
            raise UserError("FIDCallback measures samples, and the model restores images: take RestorationCallback")
        if getattr(pl_module.ema_denoiser, "latents", None) is not None:
            raise UserError("FIDCallback measures images, and the model samples latents: leave it out of the callbacks")
        for name, sampler in self.samplers.items():
            if not isinstance(sampler, TableSampler):
                continue
            for nfe in self.nfes:
                try:
                    sampler.table(cast(Denoiser, pl_module.ema_denoiser), nfe)
                except UserError as error:
                    raise UserError(f"FIDCallback cannot sample {name} at NFE {nfe}: {error}") from None
        data: Any = getattr(trainer, "datamodule", None)
        if self._real is None or data is not self._measured:
            self._real, self._measured = self._measure_real(trainer, pl_module), data

    def _measure_real(self, trainer: Trainer, pl_module: LightningModule) -> RealImages:
        if self.features == "classifier":
            pl_module.print("FID: preparing classifier features (trained once for a data set, then cached)")
        ranks = self._ranks
        with ranks.fail_together():
            data = self._data(trainer)
        features, reference = features_and_reference(
            self.features, data, self.weights, self.reference, self.metrics, ranks
        )
        real = RealImages(features, reference, {})
        with ranks.fail_together():
            scores = real.scores(self.metrics, ranks).to(ranks.device)
        told = ""
        if data is not None:
            held_out = data.held_out(self.num_samples)
            blocks = (
                (held_out[i : i + self.batch_size].to(ranks.device), near) for i, near in self._blocks(len(held_out))
            )
            train_images = data.split("train").images if self.nearest_images else None
            values, _ = measure(blocks, scores, train_images, ranks)
            by_key = {f"{name}/real": value for name, value in values.items()}
            real = real._replace(values=by_key, held_out=len(held_out))
            near = f", {values['nearest']:.1f} grey levels from the nearest" if "nearest" in values else ""
            told = f"{len(held_out):,} held-out images: {values[self.metrics[0]]:.4g}{near}; "
        how = f"{told}sampled in {precision_of(trainer)}, without TF32"
        pl_module.print(f"{title(self.metrics[0])} to {real.description}; {how}")
        features.cpu()
        return real

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._real is not None
        denoiser = cast(Denoiser, pl_module.ema_denoiser)
        scores = self._real.scores(self.metrics, self._ranks).to(pl_module.device)
        data = self._data(trainer) if self.nearest_images else None
        train_images = None if data is None else data.split("train").images
        values, start = dict(self._real.values), time.monotonic()
        left_out: list[str] = []
        limit = math.inf if self.max_seconds is None else self.max_seconds
        # the NFEs that a sampler runs when asked for these: Heun's are odd
        cells = {name: list(dict.fromkeys(map(s.calls, self.nfes))) for name, s in self.samplers.items()}
        for name, sampler in self.samplers.items():
            for nfe in cells[name]:
                cell = f"{name}/nfe{nfe}"
                begun = len(values) > len(self._real.values)
                if left_out or (begun and self._ranks.of_first(time.monotonic() - start > limit)):
                    left_out.append(cell)
                    continue
                with images_shown(trainer, f"{title(self.metrics[0])} {name}, NFE {nfe}", self.num_samples) as advance:
                    blocks = self._sampled(trainer, denoiser, sampler, nfe, advance)
                    measured, failure = measure(blocks, scores, train_images, self._ranks)
                values |= {f"{metric}/{cell}": value for metric, value in measured.items()}
                if failure:
                    rank_zero_warn(f"{cell} cannot be measured, it is logged as NaN: {failure}")
                if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
                    self._draw(trainer, denoiser, name, sampler, nfe)
        self._ranks.gather(None)  # pictures may take the first rank longer than Lightning waits
        for key, value in values.items():
            pl_module.log(key, value, sync_dist=True)  # equal on all ranks already; keeps Lightning from warning
        measured_in = f"{self._real.description}; step {trainer.global_step:,}"
        pl_module.print(self._table(values, cells, self._real.held_out, measured_in))
        if left_out:
            pl_module.print(f"not begun within {self.max_seconds:g} seconds: {', '.join(left_out)}")

    def _data(self, trainer: Trainer) -> ImageDataModule | None:
        """The trainer's ImageDataModule; None without one, if a reference file suffices."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            return data
        if self.reference is None or self.features == "classifier":
            raise UserError("FIDCallback compares with real images: give the trainer an ImageDataModule")
        return None

    @property
    def monitor(self) -> str | None:
        """What a ModelCheckpoint may monitor: FID or KID of the first sampler; None if neither is measured.

        At the largest NFE, but where `max_seconds` may leave it out, at the first.
        """
        metric = next((metric for metric in self.metrics if metric in ("fid", "kid")), None)
        name, sampler = next(iter(self.samplers.items()))
        nfes = [sampler.calls(nfe) for nfe in self.nfes]
        return metric and f"{metric}/{name}/nfe{max(nfes) if self.max_seconds is None else nfes[0]}"

    @property
    def state_key(self) -> str:
        """Key in checkpoints, different for each FIDCallback of a trainer."""
        return self._generate_state_key(samplers=[*self.samplers], nfes=[*self.nfes], num_samples=self.num_samples)

    def _blocks(self, count: int) -> Iterator[tuple[int, int]]:
        """The start of each of this rank's blocks of `count` images, and how many get a nearest image."""
        return ((first, max(self.nearest_images - first, 0)) for first in self._firsts(count))

    def _sampled(
        self, trainer: Trainer, denoiser: Denoiser, sampler: Sampler, nfe: int, advance: Callable[[int], None]
    ) -> Iterator[tuple[Tensor, int]]:
        """Samples this rank's blocks of images for `measure`; `advance` is told of the images of all ranks."""
        seeds = range(self.first_seed, self.first_seed + self.num_samples)
        for first, near in self._blocks(self.num_samples):
            block = seeds[first : first + self.batch_size]
            yield sample_images(trainer, denoiser, sampler, block, nfe, self.batch_size), near
            advance(len(block) * self._ranks.count)

    def _draw(self, trainer: Trainer, denoiser: Denoiser, name: str, sampler: Sampler, nfe: int) -> None:
        classes = trained_of(denoiser.num_classes, getattr(denoiser, "trained_classes", None))[:ROWS]
        rows = len(classes) or self.columns
        seeds = range(self.first_seed, self.first_seed + rows * self.columns)
        labels = torch.tensor([*classes]).repeat_interleave(self.columns) if classes else None
        try:
            images = sample_images(trainer, denoiser, sampler, seeds, nfe, self.batch_size, labels).cpu()
        except FloatingPointError as error:
            rank_zero_warn(f"no picture of {name}/nfe{nfe}: {error}")
            return
        log_picture(trainer, image_grid(images, self.columns), name, nfe)

    def _table(self, values: Mapping[str, float], cells: Mapping[str, Sequence[int]], real: int, measured: str) -> str:
        """The first metric, and the distance to the nearest training image if known, of each sampler at its NFEs."""
        metric = self.metrics[0]

        def cell(key: str) -> str:
            near = f" ({values[f'nearest/{key}']:.1f})" if f"nearest/{key}" in values else ""
            return f"{values[f'{metric}/{key}']:.4g}{near}" if f"{metric}/{key}" in values else ""

        near = any(key.startswith("nearest/") for key in values)
        grey = " (grey levels to the nearest training image)" if near else ""
        lines = [f"{title(metric)}{grey} of {self.num_samples:,} samples to {measured}"]
        if value := cell("real"):
            few = metric == "fid" and real < self.num_samples
            biased = ": too high, as FID falls with the number of images" if few else ""
            lines.append(f"{real:,} real images{biased}: {value}")
        return table_below(lines, cells, cell)
