"""LightningCLI with a folder for each run, one-line errors and our own options before Lightning's."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from ersde_lit.callbacks.progress_bar import TrainingBar
from ersde_lit.callbacks.validation import ValidationCallback
from ersde_lit.cli import CTRL_C
from ersde_lit.cli.data_sizes import is_class, sizes_of_data
from ersde_lit.cli.fit_parser import Parser, add_run_options, arranged
from ersde_lit.cli.messages import filter_messages
from ersde_lit.cli.parser import merged_options, split, with_arguments
from ersde_lit.cli.prediction_writer import PredictionWriter
from ersde_lit.cli.run_folder import KeepConfiguration, RunFolder
from ersde_lit.cli.typos import misspelt
from ersde_lit.data import ImageDataModule
from ersde_lit.errors import UserError
from ersde_lit.interop.weights.sources import read_weights
from ersde_lit.training import AtomicCheckpointIO, DiffusionModule
from ersde_lit.training.averaged import AveragedModule
from ersde_lit.training.initialise import initialise

TERMINATED = 143  # exit code of a process that SIGTERM ended


def run_lightning(command: str, arguments: Sequence[str], files: Mapping[str, Mapping[str, Any]]) -> None:
    """Runs a command of LightningCLI; `files` is the content of the configuration files by path."""
    filter_messages()
    given = with_arguments(reduce(merged_options, files.values(), {}), arguments)
    of_class = is_class(given.get("model"))  # as a NoisyClassifier is, by class_path and init_args
    with ExitStack() as held:
        try:
            CLI(
                AveragedModule if of_class else DiffusionModule,
                ImageDataModule,
                held=held,
                subclass_mode_model=of_class,
                subclass_mode_data=True,
                save_config_callback=None,  # the run folder keeps it
                parser_class=Parser,
                parser_kwargs={"prog": "python -m ersde_lit"},
                seed_everything_default=0,
                auto_configure_optimizers=False,  # the model has a recipe
                args=[command, *arguments, *sizes_of_data(arguments, files, given)],
            )
        except MisconfigurationException as error:
            raise UserError(str(error)) from error
        except SystemExit as stop:
            if isinstance(stop.code, str):  # of the parser
                raise SystemExit(f"{command}: {misspelt(arguments, files) or stop.code}") from None
            if isinstance(stop.__context__, KeyboardInterrupt):
                stop.code = CTRL_C  # Lightning says 1
            if stop.code in (CTRL_C, TERMINATED):
                _say(f"To go on: python -m ersde_lit {command} {shlex.join(arguments)}")
            raise


class CLI(LightningCLI):
    """LightningCLI with a folder for each run, whose lock is `held`."""

    def __init__(self, *args: Any, held: ExitStack, **kwargs: Any) -> None:
        self.held = held
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_run_options(parser)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        return arranged(super()._prepare_subcommand_parser(klass, subcommand, **kwargs), subcommand)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.folder = RunFolder(Path(config.trainer.default_root_dir or Path("runs") / _name(config)))
        config.trainer.default_root_dir = str(self.folder.path)
        self.trial = bool(config.trainer.fast_dev_run)  # leaves nothing behind
        if self.subcommand == "fit":
            if not self.trial:
                self._enter(config)
            return
        if self.subcommand == "predict" and (self.folder.path / "predictions").exists():
            raise UserError(f"{self.folder.path / 'predictions'} exists: move it away first")
        if config.ckpt_path is None:
            config.ckpt_path = str(self.folder.last)
            if not self.folder.last.exists():
                raise UserError(f"no checkpoint at {self.folder.last}: run fit first, or pass --ckpt_path")

    def _enter(self, config: Any) -> None:
        """Starts, resumes or extends a run."""
        self.held.enter_context(self.folder.locked())
        parser = self._parser("fit")
        self.configuration = parser.dump(config, skip_validation=True)
        entry = self.folder.enter(self.configuration, parser.dump(parser.get_defaults(), skip_validation=True))
        for line in entry.lines:
            _say(line)
        if entry.finished:
            self._tell_what_next([f"tensorboard --logdir {self.folder.path}"] if config.trainer.logger is None else [])
            raise SystemExit(0)
        self.resumed = entry.ckpt_path is not None
        if self.resumed:
            config.ckpt_path = str(entry.ckpt_path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand].trainer
        callbacks = _listed(config.callbacks)
        if config.enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in callbacks):
            callbacks.append(TrainingBar())
        if config.enable_model_summary is None:
            config.enable_model_summary = False  # a table of two rows; `before_fit` says it in a line
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self.folder.path / "predictions"))
        if self.subcommand == "fit" and not self.trial:
            callbacks.append(KeepConfiguration(self.folder, self.configuration, self.resumed))
            callbacks += self._best(callbacks)
        if self.subcommand != "fit":
            config.logger = False  # the curves are the training's
        if config.logger is None:
            config.logger = TensorBoardLogger(str(self.folder.path), name="", version="logs", default_hp_metric=False)
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

    def _best(self, callbacks: Sequence[Any]) -> list[ModelCheckpoint]:
        """Keeps the checkpoint of the best FID or PSNR, unless a ModelCheckpoint is configured already."""
        watch = next((one for one in callbacks if isinstance(one, ValidationCallback)), None)
        if not (watch and watch.monitor) or any(isinstance(one, ModelCheckpoint) for one in callbacks):
            return []
        best = self.folder.best
        return [ModelCheckpoint(best.parent, best.stem, watch.monitor, mode=watch.mode, enable_version_counter=False)]

    def before_fit(self) -> None:
        options = self.config_init[self.subcommand]
        if options.init_skip is not None and options.init_from is None:
            raise UserError("--init_skip names layers that --init_from leaves out: pass that, too")
        number = sum(weight.numel() for weight in self.model.network.parameters())
        shape = "x".join(map(str, self.model.image_shape))
        what = f"{number / 1e6:.3g} M parameters for {shape} images of {self.model.num_classes} classes"
        _say(f"{type(self.model.network).__name__}: {what}.")
        if options.init_from is not None and options.ckpt_path is None:
            initialise(self.model, read_weights(options.init_from), split(options.init_skip or []))
            _say(f"Starting from the averaged weights of {options.init_from}.")

    def after_fit(self) -> None:
        if self.trial or self.trainer.interrupted or not self.trainer.is_global_zero:
            return
        if not self.folder.last.exists():
            raise UserError("fit ended before its first step: raise --trainer.max_epochs, max_steps or what limits it")
        timers = [callback for callback in _listed(self.trainer.callbacks) if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        if any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers):
            longer = "the same command with a longer --trainer.max_time"
            _say(f"Time is up: to go on with {self.folder.path}, {longer}.")
            return
        self.folder.finished.touch()
        self._tell_what_next([where for logger in self.trainer.loggers if (where := _curves(logger))])

    def after_predict(self) -> None:
        _say(f"images      {self.folder.path / 'predictions'}")

    def _tell_what_next(self, curves: Sequence[str]) -> None:
        samples = self.folder.path / "samples"
        lines = [f"pictures    {samples}"] if samples.exists() else []
        lines += [f"curves      {where}" for where in curves]
        lines += [f"checkpoint  {self.folder.last}"]
        if self.folder.best.exists():
            lines += [f"best        {self.folder.best}{self._about_best()}"]
        model, last = self.config[self.subcommand].model, self.folder.last
        command = f"sample --ckpt_path {last} --seeds 0-499 --nfe 20 --out samples.npz"
        if "class_path" in model:
            command = command.replace(str(last), f"DENOISER.ckpt --classifier {last} --classifier_scale 1")
        elif model.noise is not None and not model.noise.class_path.endswith(".White"):
            command = f"restore --ckpt_path {last} --images FOLDER --out restored"
        _say("\n".join([*lines, "", "Next:", f"python -m ersde_lit {command}"]))

    def _about_best(self) -> str:
        """Value of the best checkpoint, where this process has measured it."""
        kept = getattr(self, "trainer", None) and self.trainer.checkpoint_callback
        if not isinstance(kept, ModelCheckpoint) or kept.best_model_score is None:
            return ""
        return f" ({kept.monitor} {kept.best_model_score:.4g})"


@rank_zero_only
def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


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
