"""Lightning callback of the command `predict`."""

from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from ersde_lit.errors import UserError
from ersde_lit.files import replacing
from ersde_lit.sampling.images import quantise
from ersde_lit.training import DiffusionModule


class PredictionWriter(BasePredictionWriter):
    """Writes a file of generated images for each batch and rank: arr_0 uint8 [N, H, W, C], arr_1 labels [N]."""

    def __init__(self, folder: Path) -> None:
        super().__init__("batch")
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        if not isinstance(pl_module, DiffusionModule):
            raise UserError(f"predict writes images, and a {type(pl_module).__name__} makes none")
        pl_module.check_samples()
        if getattr(pl_module.ema_denoiser, "latents", None) is not None:
            raise UserError("predict writes images, and the model samples latents: use `sample --decoder`")

    def write_on_batch_end(self, trainer: Trainer, *args: Any) -> None:
        _, prediction, _, (_, labels, *_), batch_idx, _ = args
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{batch_idx:05d}-{trainer.global_rank}.npz"
        images = rearrange(quantise(prediction), "n c h w -> n h w c")
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, arr_0=images.cpu().numpy(), arr_1=labels.cpu().numpy())
