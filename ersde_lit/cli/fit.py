"""Commands `fit`, `validate`, `test` and `predict`: LightningCLI with a run folder for each configuration.

A run lives in runs/<name of its config file> (or runs/NAME by --run NAME): its configuration, checkpoints, logs and
pictures. The same command resumes it, or says that it is finished; a changed configuration is refused, unless it only
says how the work is done (on how many devices, compiled or not, how often saved) and not what is done.
"""

import warnings
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from einops import rearrange
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ProgressBar, RichProgressBar, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from ersde_lit.cli import fail
from ersde_lit.cli.parser import one_line
from ersde_lit.data import ImageDataModule
from ersde_lit.errors import UserError
from ersde_lit.files import replacing, write_text
from ersde_lit.renamed import current
from ersde_lit.sampling.images import quantise
from ersde_lit.training import AtomicCheckpointIO, DiffusionModule, RollingCheckpoint
from ersde_lit.training.averaged import AveragedModule
from ersde_lit.training.checkpoint import is_whole

# What may change when a run is resumed: the steps it takes stay the same.
MEANS = {
    "config", "ckpt_path", "run", "checkpoint", "compile", "channels_last", "device_batch_size",
    "trainer.accelerator", "trainer.accumulate_grad_batches", "trainer.benchmark", "trainer.detect_anomaly",
    "trainer.deterministic", "trainer.devices", "trainer.enable_model_summary", "trainer.enable_progress_bar",
    "trainer.log_every_n_steps", "trainer.logger", "trainer.max_time", "trainer.num_nodes",
    "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.strategy",
}  # fmt: skip

for harmless in (
    "LightningCLI's args parameter",  # on purpose: the dispatcher has read the command
    "Found .* module.* in eval mode",  # the averaged weights
    "does not have many workers",  # a batch of images in memory is one index and one multiply
    "your dataloader is not resumable",  # it is: SeededOrder asks where to go on
    "`isinstance\\(treespec, LeafSpec\\)`",
):
    warnings.filterwarnings("ignore", f".*{harmless}")


def run(command: str, arguments: Sequence[str]) -> None:
    of_class = _names_a_class(arguments)
    try:
        CLI(
            AveragedModule if of_class else DiffusionModule,
            ImageDataModule,
            subclass_mode_model=of_class,
            subclass_mode_data=True,
            save_config_callback=None,  # the run folder keeps it
            parser_class=Parser,
            parser_kwargs={"prog": "python -m ersde_lit"},
            seed_everything_default=0,
            auto_configure_optimizers=False,  # the model has a recipe
            args=[command, *arguments],
        )
    except MisconfigurationException as error:
        raise UserError(str(error)) from error


def _names_a_class(arguments: Sequence[str]) -> bool:
    """Whether `model` is given as class_path and init_args, as that of a `NoisyClassifier` is."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config", action="append", default=[])
    files, rest = parser.parse_known_args(arguments)
    if any(argument.startswith(("--model=", "--model.class_path")) or argument == "--model" for argument in rest):
        return True
    for file in files.config:
        with suppress(OSError, yaml.YAMLError, UnicodeDecodeError):  # the CLI's own parser says so
            content = yaml.safe_load(Path(file).read_text())
            if isinstance(content, dict) and "class_path" in (content.get("model") or {}):
                return True
    return False


class Parser(LightningArgumentParser):
    """LightningArgumentParser that reports errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SystemExit(fail(one_line(message)))


class PredictionWriter(BasePredictionWriter):
    """Writes a file of generated images for each batch and rank: arr_0 uint8 [N, H, W, C], arr_1 labels [N]."""

    def __init__(self, folder: Path) -> None:
        super().__init__("batch")
        self.folder = folder

    def write_on_batch_end(self, trainer: Trainer, *args: Any) -> None:
        _, prediction, _, (_, labels), batch_idx, _ = args
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{batch_idx:05d}-{trainer.global_rank}.npz"
        images = rearrange(quantise(prediction), "n c h w -> n h w c")
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, arr_0=images.cpu().numpy(), arr_1=labels.cpu().numpy())


class CLI(LightningCLI):
    """LightningCLI with a folder for each run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        name = "name of the folder in runs/; that of the config file if not given"
        parser.add_argument("--run", type=str | None, help=name)
        batch = "images a device can take at a time; a step accumulates as many such batches as its batch_size needs"
        parser.add_argument("--device_batch_size", type=PositiveInt | None, help=batch)
        parser.add_argument("--compile", type=bool, default=False, help="torch.compile the network that is trained")
        parser.add_argument("--channels_last", type=bool, default=False, help="memory format of weights; for GPUs")
        parser.add_lightning_class_args(RollingCheckpoint, "checkpoint")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.folder = Path(config.trainer.default_root_dir or Path("runs") / _name(config))
        config.trainer.default_root_dir = str(self.folder)
        self.trial = bool(config.trainer.fast_dev_run)  # leaves nothing behind
        if self.subcommand == "fit":
            if not self.trial:
                self._enter(config)
            return
        if self.subcommand == "predict" and (self.folder / "predictions").exists():
            raise UserError(f"{self.folder / 'predictions'} exists: move it away first")
        if config.ckpt_path is None:
            config.ckpt_path = str(self.last)
            if not self.last.exists():
                raise UserError(f"no checkpoint at {self.last}: run fit first, or pass --ckpt_path")

    @property
    def last(self) -> Path:
        """The newest checkpoint of the run."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def finished(self) -> Path:
        """A file that marks a run as finished."""
        return self.folder / "finished"

    def _enter(self, config: Any) -> None:
        """Starts or resumes a run; refuses another configuration than it began with."""
        kept = self.folder / "config.yaml"
        dump = self._parser("fit").dump(config, skip_validation=True)
        kept_checkpoints = [path for path in (self.last, self.last.with_stem("previous")) if path.exists()]
        if not kept_checkpoints:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(kept, dump, concurrent=True)  # ranks write the same
            self.finished.unlink(missing_ok=True)
            return
        if changed := sorted(_differences(current(yaml.safe_load(kept.read_text())), current(yaml.safe_load(dump)))):
            raise UserError(
                f"{self.folder} holds a run with another configuration ({', '.join(changed[:3])}): "
                "start a new one with --run NAME"
            )
        if self.finished.exists():
            _say(f"{self.folder} is finished: nothing to do.")
            self._tell_what_next([f"tensorboard --logdir {self.folder}"] if config.trainer.logger is None else [])
            raise SystemExit(0)
        for path in kept_checkpoints:
            if is_whole(path):
                config.ckpt_path = str(path)
                _say(f"Resuming {self.folder} from {path}.")
                return
            _say(f"Warning: {path} is damaged, and skipped.")
        raise UserError(f"no checkpoint of {self.folder} is whole: remove its folder, or start anew with --run NAME")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand].trainer
        callbacks = _listed(config.callbacks)
        if config.enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in callbacks):
            callbacks.append(RichProgressBar(refresh_rate=4))
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self.folder / "predictions"))
        if self.subcommand != "fit":
            config.logger = False  # the curves are the training's
        if config.logger is None:
            config.logger = TensorBoardLogger(str(self.folder), name="", version="logs", default_hp_metric=False)
        config.plugins = [*_listed(config.plugins), AtomicCheckpointIO()]
        config.callbacks = callbacks
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ValueError as error:  # strategies that do not go with the accelerator, and the like
            raise UserError(str(error)) from error
        options = self.config_init[self.subcommand]
        if options.device_batch_size is not None:
            if trainer.accumulate_grad_batches != 1:
                raise UserError("pass --device_batch_size or --trainer.accumulate_grad_batches, not both")
            batch_size, most = self.datamodule.batch_size, options.device_batch_size
            trainer.accumulate_grad_batches = _accumulation(batch_size, trainer.world_size, most)
        if options.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if options.compile:
            self.model.network.compile()  # in place: the names of the weights stay
        return trainer

    def after_fit(self) -> None:
        if self.trial or self.trainer.interrupted or not self.trainer.is_global_zero:
            return
        if not self.last.exists():
            raise UserError("fit ended before its first step: raise --trainer.max_epochs, max_steps or what limits it")
        timers = [callback for callback in _listed(self.trainer.callbacks) if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        if any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers):
            _say(f"Time is up: to go on with {self.folder}, the same command with a longer --trainer.max_time.")
            return
        self.finished.touch()
        self._tell_what_next([where for logger in self.trainer.loggers if (where := _curves(logger))])

    def after_predict(self) -> None:
        if self.trainer.is_global_zero:
            Console(soft_wrap=True).print(f"images      {self.folder / 'predictions'}")

    def _tell_what_next(self, curves: Sequence[str]) -> None:
        console = Console(soft_wrap=True)
        if (self.folder / "samples").exists():
            console.print(f"pictures    {self.folder / 'samples'}")
        for where in curves:
            console.print(f"curves      {where}")
        console.print(f"checkpoint  {self.last}")
        console.print("\nNext:")
        model = f"--ckpt_path {self.last}"
        if "class_path" in self.config[self.subcommand].model:
            model = f"--ckpt_path DENOISER.ckpt --classifier {self.last} --classifier_scale 1"
        console.print(f"python -m ersde_lit sample {model} --seeds 0-499 --nfe 20 --out samples.npz")


@rank_zero_only
def _say(line: str) -> None:
    Console(soft_wrap=True).print(line)


def _curves(logger: Logger) -> str | None:
    """Where a logger's curves are, if that is known."""
    match logger:
        case TensorBoardLogger():
            return f"tensorboard --logdir {logger.save_dir}"
        case CSVLogger():
            return str(Path(logger.log_dir) / "metrics.csv")
        case WandbLogger():
            return str(logger.experiment.url or logger.experiment.dir)  # offline there is no address
    return None


def _name(config: Any) -> str:
    """The name of a run."""
    if config.run is not None:
        if config.run in ("", ".", "..") or Path(config.run).name != config.run:
            raise UserError(f"--run {config.run!r}: a run is a folder in runs/; give it a plain name")
        return str(config.run)
    if not config.config:
        raise UserError("a run needs a name: pass --config FILE or --run NAME")
    return Path(str(config.config[0])).stem


def _accumulation(batch_size: int, devices: int, device_batch_size: int) -> int:
    """Number of batches of at most `device_batch_size` images that a device accumulates for a step."""
    images = batch_size // devices  # the data refuse what leaves a rest
    batches = max(-(-images // device_batch_size), 1)
    if images % batches:
        raise UserError(
            f"{images} images, a device's share of batch_size {batch_size}, are not {batches} equal batches of at most "
            f"--device_batch_size {device_batch_size}: choose a divisor of {images}"
        )
    return batches


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _differences(old: Any, new: Any, key: str = "") -> set[str]:
    """Finds the keys at which two configurations differ, except those in `MEANS`."""
    if key in MEANS:
        return set()
    if isinstance(old, dict) and isinstance(new, dict):
        below = (_differences(old.get(k), new.get(k), f"{key}.{k}".lstrip(".")) for k in {*old, *new})
        return set().union(*below)
    return set() if old == new else {key}
