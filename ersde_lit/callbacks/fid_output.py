"""Output of the callbacks: pictures for the loggers and the disk, and tables to print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path

from einops import rearrange
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from ersde_lit.metrics.protocol import title
from ersde_lit.sampling.grid import save_png


def log_picture(trainer: Trainer, picture: Tensor, name: str, nfe: int) -> None:
    """Logs a grid of images, uint8 [C, H, W], to TensorBoard, Weights & Biases and <default_root_dir>/samples."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped  # that of `log`; global_step is one ahead of it
    if picture.shape[0] in (1, 3):
        save_png(picture, Path(trainer.default_root_dir) / "samples" / f"{name}-nfe{nfe}-step{step:07d}.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"samples/{name}/nfe{nfe}", picture, step)
        elif isinstance(logger, WandbLogger):
            pixels = rearrange(picture, "c h w -> h w c").numpy()
            logger.log_image(f"samples/{name}/nfe{nfe}", [pixels], step)


def table(
    metric: str,
    values: Mapping[str, float],
    cells: Mapping[str, Sequence[int]],
    samples: int,
    real: int,
    measured: str,
) -> str:
    """Formats a table of the metric, and the distance to the nearest training image if known, by sampler and NFE.

    Args:
        values: by the names they are logged with.
        cells: the NFEs of each sampler.
        samples, real: numbers of images, sampled and held out.
        measured: words on the reference, the features and the step.
    """

    def cell(key: str) -> str:
        near = f" ({values[f'nearest/{key}']:.1f})" if f"nearest/{key}" in values else ""
        return f"{values[f'{metric}/{key}']:.4g}{near}" if f"{metric}/{key}" in values else ""

    near = any(key.startswith("nearest/") for key in values)
    grey = " (grey levels to the nearest training image)" if near else ""
    lines = [f"{title(metric)}{grey} of {samples:,} samples to {measured}"]
    if value := cell("real"):
        biased = ": too high, as FID falls with the number of images" if metric == "fid" and real < samples else ""
        lines.append(f"{real:,} real images{biased}: {value}")
    return table_below(lines, cells, cell)


def table_below(lines: Sequence[str], cells: Mapping[str, Sequence[int]], cell: Callable[[str], str]) -> str:
    """Formats lines and below them a table by sampler and NFE, where `cell` is told "<sampler>/nfe<k>"."""
    columns = sorted({nfe for nfes in cells.values() for nfe in nfes})
    rows = Table("sampler", *(Column(f"NFE {nfe}", justify="right") for nfe in columns))
    for name in cells:
        rows.add_row(name, *(cell(f"{name}/nfe{nfe}") for nfe in columns))
    with StringIO() as text:
        console = Console(file=text, width=100, soft_wrap=True)
        console.print("\n".join(lines), highlight=False, markup=False)
        console.print(rows)
        return text.getvalue().rstrip()
