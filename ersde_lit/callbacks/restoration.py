"""Callback that logs PSNR and SSIM of restored images, for every sampler at every NFE, at each validation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ersde_lit.callbacks.progress_bar import images_shown
from ersde_lit.callbacks.validation import ValidationCallback, autocast, log_picture, precision_of, table_below
from ersde_lit.data import ImageDataModule
from ersde_lit.data.base import Batches
from ersde_lit.denoisers import Denoiser, NoiseLaw
from ersde_lit.errors import UserError
from ersde_lit.metrics.fidelity import fidelity
from ersde_lit.sampling.grid import image_grid
from ersde_lit.sampling.images import quantise
from ersde_lit.sampling.restoration import RESTORER, degrade, restoration_table, restore
from ersde_lit.solvers import Sampler
from ersde_lit.tf32 import tf32


class RestorationCallback(ValidationCallback):
    """Restores held-out images at each validation with every sampler at every NFE, and logs how near they come.

    - `psnr/<sampler>/nfe<k>` in dB and `ssim/<sampler>/nfe<k>`: means over the first num_images of the "val" images.
    - `psnr/degraded`, `ssim/degraded`: of what is restored, the degraded images of pairs, or else the clean ones with
      the model's noise at lam = 1, that of image k from seed first_seed + k: the same at each validation.
    - a picture for each sampler and NFE, with rows of degraded, restored and clean images, in TensorBoard, Weights &
      Biases and <default_root_dir>/samples.

    They can be monitored by a ModelCheckpoint from the first validation on. SSIM is left out of images below 11 pixels.
    Weights are those of `ema_denoiser`; the network works in the trainer's precision by autocast, all else in float32
    without TF32. The values do not depend on the number of ranks. Where a restored image is not finite, the values of
    its sampler and NFE are NaN, with a warning, and training goes on.

    Args:
        samplers: with a table, by the name they get in the logs; None: "restorer", `sampling.restoration.RESTORER`.
        nfes: numbers of network calls an image.
        num_images: images for each value, or as many as are held out.
        batch_size: images restored at a time, and at most in a row of a picture.
        every_n_validations: evaluate at the first validation and every n-th after it, and at the last of the run.
        first_seed: of the degradations, and of samplers with noise.
        columns: of the pictures.

    Raises:
        UserError: an argument out of range; at `fit`, a model that samples images, or a sampler that has no table for
            an NFE or adds noise where that is wrong.
    """

    mode: ClassVar[str] = "max"

    def __init__(
        self,
        samplers: dict[str, Sampler] | None = None,
        nfes: Sequence[int] = (1, 5),
        num_images: int = 64,
        batch_size: int = 16,
        every_n_validations: int = 1,
        first_seed: int = 0,
        columns: int = 10,
    ) -> None:
        super().__init__()
        self._check_counts(locals(), num_images=1, batch_size=1, every_n_validations=1, first_seed=0, columns=1)
        self.samplers = {"restorer": RESTORER} if samplers is None else samplers
        if not (self.samplers and nfes):
            raise UserError("RestorationCallback needs at least one sampler and one NFE")
        self.nfes, self.num_images, self.batch_size, self.columns = nfes, num_images, batch_size, columns
        self.every_n_validations, self.first_seed = every_n_validations, first_seed

    @property
    def monitor(self) -> str:
        """PSNR of the first sampler at the largest NFE."""
        return f"psnr/{next(iter(self.samplers))}/nfe{max(self.nfes)}"

    @property
    def state_key(self) -> str:
        """Key in checkpoints, different for each RestorationCallback of a trainer."""
        return self._generate_state_key(samplers=[*self.samplers], nfes=[*self.nfes], num_images=self.num_images)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UserError now, not hours later, where there is nothing to restore, or a sampler cannot restore it."""
        if not getattr(pl_module, "restores", False):
            kind = type(pl_module).__name__
            raise UserError(f"RestorationCallback measures restored images, and this {kind} has none: take FIDCallback")
        if not isinstance(getattr(trainer, "datamodule", None), ImageDataModule):
            raise UserError("RestorationCallback restores held-out images: give the trainer an ImageDataModule")
        for name, nfe, sampler in self._cells():
            try:
                restoration_table(cast(Denoiser, pl_module.ema_denoiser), sampler, nfe)
            except UserError as error:
                raise UserError(f"RestorationCallback cannot restore with {name} at NFE {nfe}: {error}") from None

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        denoiser, cells = cast(Denoiser, pl_module.ema_denoiser), [*self._cells()]
        dataset = cast(ImageDataModule, trainer.datamodule).dataset("val")  # type: ignore[attr-defined]
        count = min(self.num_images, len(dataset))
        blocks: dict[int, dict[str, Tensor]] = {}  # values of images, by the first of a block
        shown = images_shown(trainer, "PSNR of restored images", count * len(cells))
        with shown as advance, self._ranks.fail_together():
            for block, clean, degraded in self._images(dataset, count, denoiser.noise, pl_module.device):
                values = _named("degraded", fidelity(degraded, clean))
                for name, nfe, sampler in cells:
                    try:
                        with autocast(trainer), tf32(False):
                            restored = restore(denoiser, sampler, degraded, nfe, self._seeds(block))
                    except FloatingPointError:
                        restored = torch.full_like(degraded, math.nan)
                    values |= _named(f"{name}/nfe{nfe}", fidelity(restored, clean))
                    if block[0] == 0 and trainer.state.fn == TrainerFn.FITTING and restored.isfinite().all():
                        rows = [images[: self.columns] for images in (degraded, restored, clean)]
                        log_picture(trainer, image_grid(quantise(torch.cat(rows)).cpu(), len(rows[0])), name, nfe)
                    advance(len(block) * self._ranks.count)
                blocks[block[0]] = values
        gathered = {first: values for part in self._ranks.gather(blocks) for first, values in part.items()}
        in_order = [gathered[first] for first in sorted(gathered)]  # the sums are to the bit those of one rank
        means = {key: torch.cat([values[key] for values in in_order]).mean().item() for key in in_order[0]}
        for key, value in means.items():
            if math.isnan(value) and key.startswith("psnr/"):
                rank_zero_warn(f"{key} is logged as NaN: a restored image is not finite")
            pl_module.log(key, value, sync_dist=True)  # equal on all ranks already; keeps Lightning from warning
        pl_module.print(self._table(trainer, means, count))

    def _cells(self) -> Iterator[tuple[str, int, Sampler]]:
        for name, sampler in self.samplers.items():
            for nfe in self.nfes:
                yield name, nfe, sampler

    def _images(
        self, dataset: Batches, count: int, law: NoiseLaw, device: torch.device
    ) -> Iterator[tuple[range, Tensor, Tensor]]:
        """Yields this rank's blocks of the first images: their numbers, clean and degraded images [B, C, H, W]."""
        for first in self._firsts(count):
            block = range(count)[first : first + self.batch_size]
            clean, _, *pair = (part.to(device) for part in dataset.__getitems__([*block]))
            yield block, clean, pair[0] if pair else degrade(law, clean, self._seeds(block))

    def _seeds(self, block: range) -> range:
        return range(self.first_seed + block.start, self.first_seed + block.stop)

    def _table(self, trainer: Trainer, means: Mapping[str, float], images: int) -> str:
        def cell(key: str) -> str:
            ssim = f" ({means[f'ssim/{key}']:.4f})" if f"ssim/{key}" in means else ""
            return f"{means[f'psnr/{key}']:.2f}{ssim}"

        what = "PSNR in dB (SSIM)" if "ssim/degraded" in means else "PSNR in dB"
        how = f"restored in {precision_of(trainer)}, without TF32; step {trainer.global_step:,}"
        lines = [f"{what} of {images:,} held-out images, {how}", f"degraded: {cell('degraded')}"]
        return table_below(lines, dict.fromkeys(self.samplers, self.nfes), cell)


def _named(cell: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{metric}/{cell}": value.cpu().double() for metric, value in values.items()}
