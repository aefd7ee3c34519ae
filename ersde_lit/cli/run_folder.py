"""Run folder: configuration, checkpoints, logs and pictures of one training, which its command starts or goes on with.

A run lives in runs/<name of its config file> (or runs/NAME by --run NAME). The same command resumes it, or says that it
is finished. A configuration that changes how the work is done (devices, compilation, how often it is saved) is taken as
it is; one that extends the run or watches it otherwise, with a line; one that changes what is trained is refused.
"""

from contextlib import AbstractContextManager, nullcontext
from os import environ
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from ersde_lit.cli.parser import merged_options
from ersde_lit.errors import UserError
from ersde_lit.files import locked, write_text
from ersde_lit.renamed import current
from ersde_lit.training.averaged import AveragedModule
from ersde_lit.training.checkpoint import is_whole

HOW = {  # the work is done; the steps stay the same
    "config", "ckpt_path", "run", "checkpoint", "compile", "channels_last", "device_batch_size",
    "trainer.accelerator", "trainer.accumulate_grad_batches", "trainer.benchmark", "trainer.detect_anomaly",
    "trainer.deterministic", "trainer.devices", "trainer.enable_model_summary", "trainer.enable_progress_bar",
    "trainer.log_every_n_steps", "trainer.logger", "trainer.max_time", "trainer.num_nodes",
    "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.strategy",
}  # fmt: skip
LENGTH = {"trainer.max_epochs", "trainer.max_steps", "trainer.min_epochs", "trainer.min_steps"}
WATCH = {
    "trainer.callbacks", "trainer.check_val_every_n_epoch", "trainer.limit_val_batches", "trainer.val_check_interval",
}  # fmt: skip


class Entry(NamedTuple):
    """How a run begins: the checkpoint that it goes on from, if any, and lines to print."""

    ckpt_path: Path | None
    lines: list[str]
    finished: bool = False


class RunFolder:
    """The folder of a run, with the configuration that it was last trained with, and a file that marks it as finished.

    Its checkpoints are the newest, the one before, and that of the best FID or PSNR.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.config, self.finished = path, path / "config.yaml", path / "finished"
        self.last, self.previous, self.best = (
            path / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous", "best")
        )

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes from training in the folder.

        Raises:
            UserError: another process does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        rank = getattr(rank_zero_only, "rank", 0)  # as the launcher has it in the environment
        if rank or any(int(environ.get(name, 0)) for name in ("NODE_RANK", "GROUP_RANK")):
            return nullcontext()
        return locked(
            self.path / ".lock", f"another process is training in {self.path}: wait for it to end, or pass --run NAME"
        )

    def enter(self, configuration: str, defaults: str) -> Entry:
        """Finds out how the run begins with this configuration, in YAML.

        Args:
            defaults: of options, in YAML; a run may have begun before there was an option.

        Raises:
            UserError: the run trains something else, or its configuration or all its checkpoints are damaged.
        """
        checkpoints = [path for path in (self.last, self.previous) if path.exists()]
        if not checkpoints:
            return Entry(None, [])
        try:
            before = dict(yaml.safe_load(self.config.read_text()))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise UserError(
                f"{self.config} cannot be read: put it back, or start a new run with --run NAME --ckpt_path {self.last}"
            ) from None
        usual, kept, asked = map(current, (yaml.safe_load(defaults), before, yaml.safe_load(configuration)))
        changed = _differences(merged_options(usual, kept), asked)
        if other := sorted(changed.keys() - LENGTH - WATCH):
            raise UserError(
                f"{self.path} holds a run with another configuration ({', '.join(other[:3])}): start a new one with "
                f"--run NAME, from its weights by --init_from {self.last}"
            )
        if self.finished.exists() and not changed.keys() & LENGTH:
            return Entry(None, [f"{self.path} is finished: nothing to do."], finished=True)
        lines = [f"{self.path} goes on with {', '.join(map(_in_words, changed.items()))}."] if changed else []
        for path in checkpoints:
            if is_whole(path):
                return Entry(path, [*lines, f"Resuming {self.path} from {path}."])
            lines.append(f"Warning: {path} is damaged, and skipped.")
        raise UserError(f"no checkpoint of {self.path} is whole: remove its folder, or start anew with --run NAME")


class KeepConfiguration(Callback):
    """Writes the configuration of a run once its training has begun, and not where it was refused.

    A run that is resumed began earlier, perhaps with another length.
    """

    def __init__(self, folder: RunFolder, configuration: str, resumed: bool) -> None:
        self.folder, self.configuration, self.resumed = folder, configuration, resumed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cast(AveragedModule, pl_module).check_length(begun=self.resumed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_text(self.folder.config, self.configuration)
            self.folder.finished.unlink(missing_ok=True)


def _differences(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Keys at which two configurations differ, except those of `HOW`, with both values."""
    if key in HOW:
        return {}
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in {*old, *new}:
            found |= _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        return found
    return {} if old == new else {key: (old, new)}


def _in_words(change: tuple[str, tuple[Any, Any]]) -> str:
    key, (old, new) = change
    return f"other {key}" if isinstance(old, list) or isinstance(new, list) else f"{key} {new} (it was {old})"
