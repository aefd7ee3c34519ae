"""Callback that tracks power-function averages of weights and writes snapshots of them."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.files import replacing
from ersde_lit.training.averaged import AveragedModule
from ersde_lit.training.ema import follow
from ersde_lit.training.fsdp import whole_weights
from ersde_lit.training.power_ema import decay, gamma_of

FOLDER, STATE_KEY, CHECKSUM_KEY = "ema_snapshots", "PowerEMA", "crc32"


class PowerEMA(Callback):
    """Tracks power-function averages of a module's raw weights (`ersde_lit.training.power_ema`).

    After every optimiser step each average takes in the trained weights; whenever another `every_n_images` have
    been seen, all averages are written to <default_root_dir>/ema_snapshots/<images>.safetensors. `python -m ersde_lit
    ema` makes of them the average of any length (Karras et al. 2024, arXiv:2312.02696, section 3.2).

    All ranks hold the same averages, rank 0 writes. Checkpoints hold the averages in full precision and a list of the
    snapshots before them; a resumed run goes on from there and writes later snapshots anew.

    Args:
        every_n_images: images from one snapshot to the next.
        lengths: relative widths sigma_rel of the averages, in (0, 0.2887].
        dtype: of the weights in snapshots. "float16" halves them and rounds weights by about 2e-4 of their size, which
            lengths far shorter than the tracked ones magnify up to tenfold.

    Raises:
        ValueError: an argument out of range, or a checkpoint with other lengths.
    """

    def __init__(
        self,
        every_n_images: int,
        lengths: Sequence[float] = (0.05, 0.10),
        dtype: Literal["float16", "float32"] = "float32",
    ) -> None:
        if every_n_images < 1:
            raise UserError(f"PowerEMA: every_n_images must be at least 1, not {every_n_images}")
        if not lengths or len(set(lengths)) < len(lengths):
            raise UserError(f"PowerEMA: lengths must be one or more different numbers, not {[*lengths]}")
        if dtype not in ("float16", "float32"):
            raise UserError(f"PowerEMA: dtype must be float16 or float32, not {dtype}")
        self.every_n_images, self.dtype = every_n_images, getattr(torch, dtype)
        self.gammas = {float(length): gamma_of(length) for length in lengths}
        self.averages: dict[float, dict[str, Tensor]] = {}  # by length, then by parameter
        self.images = 0  # seen up to the last step that the averages have taken in
        self.snapshots: list[int] = []  # the images seen at each
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(AveragedModule, pl_module)
        if self.images > module.images_seen:
            raise UserError("this PowerEMA has followed another training: give each training a new one")
        kept, self.averages = self.averages, {length: {} for length in self.gammas}
        if not kept:  # no checkpoint brought them
            self.images = module.images_seen
        for weights in whole_weights(module.trained):
            for (name, weight), length in product(weights.items(), self.gammas):
                start = kept[length][name] if kept else weight
                self.averages[length][name] = start.to(weight.device, torch.float32, copy=True)
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        module = cast(AveragedModule, pl_module)
        before, self.images = self.images, module.images_seen
        for weights in whole_weights(module.trained):
            for length, average in self.averages.items():
                follow(average, weights, 1 - decay(self.gammas[length], before, self.images))
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]  # Lightning sets it from outside
        if self.images // self.every_n_images > before // self.every_n_images and not is_trial:
            values = (value.to(self.dtype) for average in self.averages.values() for value in average.values())
            module.check_sound({"power-function averages": values})
            self.snapshots.append(self.images)
            if trainer.is_global_zero:
                write_snapshot(snapshot_path(trainer.default_root_dir, self.images), self.averages, self.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "averages": self.averages, "snapshots": self.snapshots}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.averages, self.snapshots = (state_dict[key] for key in ("images", "averages", "snapshots"))
        kept, own = [*self.averages], [*self.gammas]
        if kept != own:
            raise UserError(f"PowerEMA: the checkpoint's lengths are {kept}, not {own}: go on with the same")


def snapshot_path(run: str | Path, images: int) -> Path:
    return Path(run) / FOLDER / f"{images:010d}.safetensors"


def write_snapshot(path: Path, averages: Mapping[float, Mapping[str, Tensor]], dtype: torch.dtype) -> None:
    """Writes tensors named <length>/<parameter> and a checksum, atomically; equal averages give equal bytes."""
    tensors = {
        f"{length}/{name}": value.to("cpu", dtype).contiguous()
        for length, average in averages.items()
        for name, value in average.items()
    }
    crc = reduce(_checksum, tensors.values(), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {CHECKSUM_KEY: str(crc)})


def read_snapshot(path: Path, lengths: Iterable[float], names: Iterable[str]) -> Iterator[tuple[float, str, Tensor]]:
    """Yields (length, name, tensor) in the order of writing; raises UserError, perhaps at the end, if damaged."""
    crc = 0
    try:
        with safe_open(path, "pt") as file:
            for length, name in product(lengths, names):
                tensor = file.get_tensor(f"{length}/{name}")
                crc = _checksum(crc, tensor)
                yield length, name, tensor
            if file.metadata()[CHECKSUM_KEY] != str(crc):
                raise SafetensorError("checksum")
    except (SafetensorError, OSError, KeyError, TypeError):
        raise UserError(f"{path} is damaged or of another run: move it away to use the others alone") from None


def _checksum(before: int, tensor: Tensor) -> int:
    return zlib.crc32(tensor.numpy().data, before)
