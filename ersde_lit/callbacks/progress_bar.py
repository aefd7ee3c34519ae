"""Progress bars on the terminal: Lightning's, and one of the images sampled during a validation."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class TrainingBar(RichProgressBar):
    """RichProgressBar that refreshes four times a second and does not name the logger's folder."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self._metrics: dict[str, Any] = {}
        self._read_at = -math.inf

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        if not trainer.training or time.monotonic() >= self._read_at + 0.25:  # reading waits for the device
            metrics = super().get_metrics(trainer, pl_module)
            self._metrics = {name: value for name, value in metrics.items() if name != "v_num"}
            self._read_at = time.monotonic()
        return self._metrics


@contextmanager
def images_shown(trainer: Trainer, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar of images, with their number a second and the time left, where a RichProgressBar is on.

    Yields:
        A function that is told of each number of images done.
    """
    bar = trainer.progress_bar_callback
    if not isinstance(bar, RichProgressBar) or bar.progress is None:
        yield lambda count: None
        return
    progress = bar.progress
    task = progress.add_task(description, total=total)
    try:
        yield lambda count: progress.update(task, advance=count)
    finally:
        progress.update(task, visible=False)
