"""A run that is stopped anywhere and resumed is the run that was never stopped, to the last bit."""

import csv
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Pictures, network, trainer

from ersde_lit.training import EMA, AdamWConfig, AtomicCheckpointIO, DiffusionModule, RollingCheckpoint

MODES = {
    "epochs": {"max_epochs": 3},
    "accumulated": {"max_epochs": 3, "accumulate_grad_batches": 2},
    "steps": {"max_steps": 13},
    "steps without validation": {"max_steps": 13, "limit_val_batches": 0, "accumulate_grad_batches": 2},
    "validation every other epoch": {"max_epochs": 4, "check_val_every_n_epoch": 2},
    "validation in mid-epoch": {"max_epochs": 3, "accumulate_grad_batches": 2, "val_check_interval": 4},
    "validation across epochs": {"max_steps": 13, "check_val_every_n_epoch": None, "val_check_interval": 4},
}


class Killed(Exception):
    pass


class Witness(Callback):
    """Dies at the end of a batch or a validation; remembers validations, in its checkpoints as well."""

    def __init__(self, dies_after: int | None, dies_in_validation: int | None = None) -> None:
        self.batches_left, self.validations_left, self.validations = dies_after, dies_in_validation, []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.validations_left is not None and not trainer.sanity_checking:
            self.validations_left -= 1
            if self.validations_left == 0:
                raise Killed

    def on_train_batch_end(self, *args: Any) -> None:
        if self.batches_left is not None:
            self.batches_left -= 1
            if self.batches_left == 0:
                raise Killed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": list(self.validations)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = list(state_dict["validations"])


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def start(
    folder: Path,
    *others: Callback,
    dies_after: int | None = None,
    dies_in_validation: int | None = None,
    steps: int = 2,
    dropout: float = 0.3,
    decay: float = 0.5,
    **options: Any,
) -> pl.Trainer:
    """Begins a run of 5 steps an epoch, or goes on with it, as the command line does."""
    pl.seed_everything(3, verbose=False)
    recipe = AdamWConfig(1e-2, warmup=20, decay=decay)
    module = DiffusionModule(network(dropout=dropout), label_dropout=0.2, optimizer=recipe, ema=EMA(50))
    attempt = len(list(folder.glob("curves/*")))
    runner = trainer(
        folder, logger=CSVLogger(folder, "curves", attempt), log_every_n_steps=1, enable_checkpointing=True,
        callbacks=[Witness(dies_after, dies_in_validation), *others, RollingCheckpoint(steps=steps)],
        plugins=[AtomicCheckpointIO()],
        **options,
    )  # fmt: skip
    try:
        runner.fit(module, datamodule=Pictures(8), ckpt_path=last(folder) if last(folder).exists() else None)
    except Killed:
        assert dies_after is not None or dies_in_validation is not None
    return runner


def content(folder: Path) -> dict[str, Any]:
    return torch.load(last(folder), weights_only=True)


def curves(folder: Path) -> set[tuple[str, int, str]]:
    """All that was logged, once for each value: (name, step, value)."""
    rows = [row for path in folder.glob("curves/*/metrics.csv") for row in csv.DictReader(path.open())]
    return {(name, int(row["step"]), value) for row in rows for name, value in row.items() if value and name != "step"}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for k, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{k}")
    else:
        assert one == other, where


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_died_twice_ends_like_one_that_never_did(mode: str, tmp_path, monkeypatch) -> None:
    whole = start(tmp_path / "whole", **MODES[mode])
    batches = whole.global_step * whole.accumulate_grad_batches
    expected, logged = content(tmp_path / "whole"), curves(tmp_path / "whole")
    assert len({(name, step) for name, step, _ in logged}) == len(logged)
    for first in (batches // 3, batches // 2 + 1):
        folder = tmp_path / str(first)
        start(folder, dies_after=first, **MODES[mode])
        start(folder, dies_after=batches // 4, **MODES[mode])
        start(folder, **MODES[mode])
        assert_same(content(folder), expected)
        assert curves(folder) == logged


@pytest.mark.parametrize("longer", [{"max_epochs": 4}, {"max_steps": 17, "check_val_every_n_epoch": 2}])
def test_a_run_is_extended_to_what_it_would_have_been(longer: dict[str, int], tmp_path) -> None:
    start(tmp_path / "extended", max_epochs=2, decay=0.0)
    start(tmp_path / "extended", decay=0.0, **longer)
    start(tmp_path / "whole", decay=0.0, **longer)
    extended, whole = content(tmp_path / "extended"), content(tmp_path / "whole")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "images_seen", "epoch", "global_step"):
        assert_same(extended[key], whole[key])


class ChecksLength(Callback):
    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.check_length(begun=True)


@pytest.mark.parametrize(("trained", "refused"), [(2, False), (4, True)])
def test_a_run_whose_rate_has_begun_to_fall_keeps_its_length(trained: int, refused: bool, tmp_path) -> None:
    start(tmp_path, ChecksLength(), dies_after=5 * trained - 1, steps=1, max_epochs=5)  # it falls from step 13 of 25 on
    start(tmp_path, ChecksLength(), dies_after=1, steps=1, max_epochs=5)
    if refused:
        with pytest.raises(ValueError, match=r"keeps its length.*--init_from"):
            start(tmp_path, ChecksLength(), max_epochs=8)
    else:
        assert start(tmp_path, ChecksLength(), max_epochs=8).global_step == 40


@pytest.mark.parametrize("mode", [mode for mode in MODES if "limit_val_batches" not in MODES[mode]])
def test_a_run_that_died_in_each_validation_ends_like_one_that_never_did(mode: str, tmp_path) -> None:
    whole = start(tmp_path / "whole", steps=100, **MODES[mode])
    expected, folder = content(tmp_path / "whole"), tmp_path / "killed"
    validations = next(state for key, state in expected["callbacks"].items() if "Witness" in key)["validations"]
    for step in validations:
        for nth in (2, 1) if step != validations[0] else (1, 1):  # the one that was cut short, and then the next
            start(folder, dies_in_validation=nth, steps=100, **MODES[mode])
            assert content(folder)["global_step"] == step
    start(folder, steps=100, **MODES[mode])
    assert content(folder)["global_step"] == whole.global_step
    assert_same(content(folder), expected)
    assert curves(folder) == curves(tmp_path / "whole")


def test_checkpoints_are_written_as_often_as_said_and_the_one_before_is_kept(tmp_path) -> None:
    start(tmp_path, steps=3, dies_after=9, max_epochs=3, limit_val_batches=0)
    steps = {path.stem: torch.load(path, weights_only=True)["global_step"] for path in last(tmp_path).parent.iterdir()}
    assert steps == {"last": 6, "previous": 3}
    start(tmp_path, steps=3, max_epochs=3, limit_val_batches=0)
    assert [path.name for path in last(tmp_path).parent.iterdir()] == ["last.ckpt"]
    assert content(tmp_path)["global_step"] == 15


def test_a_checkpoint_follows_each_validation_and_the_clock(tmp_path, monkeypatch) -> None:
    start(tmp_path / "validated", steps=100, dies_after=7, max_epochs=3)
    assert content(tmp_path / "validated")["global_step"] == 5
    now = iter(range(0, 100_000, 300))  # five minutes each time somebody looks
    monkeypatch.setattr("ersde_lit.training.resume.time.monotonic", lambda: next(now))
    start(tmp_path / "clocked", steps=100, dies_after=5, max_epochs=3)
    assert content(tmp_path / "clocked")["global_step"] in (2, 3, 4)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_saves_after_the_step_and_ends(batches: int, number: int, name: str, tmp_path, capsys) -> None:
    class Stopped(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
            if module.images_seen == 56 + 8 // batches:  # in the middle of a step where two batches make one
                os.kill(os.getpid(), number)

    options = {"max_epochs": 3, "steps": 100, "accumulate_grad_batches": batches}
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        start(tmp_path / "stopped", Stopped(), **options)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert content(tmp_path / "stopped")["global_step"] == 8
    assert f"{name}: saved" in capsys.readouterr().out
    start(tmp_path / "stopped", **options)
    start(tmp_path / "whole", **options)
    assert_same(content(tmp_path / "stopped"), content(tmp_path / "whole"))


class Interrupted(Callback):
    """Sends Ctrl-C in the second validation, once or twice."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step == 10:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("times", "code", "validations"), [(1, 130, [5, 10]), (2, 1, [5])])
def test_ctrl_c_in_a_validation_ends_after_it_and_twice_at_once(
    times: int, code: int, validations: list[int], tmp_path, capsys
) -> None:
    with pytest.raises(SystemExit) as stopped:
        start(tmp_path / "stopped", Interrupted(times), max_epochs=3, steps=100)
    assert stopped.value.code == code
    assert "ends after this validation" in capsys.readouterr().err
    kept = content(tmp_path / "stopped")
    assert kept["global_step"] == 10
    assert next(iter(kept["callbacks"].values())) == {"validations": validations}
    start(tmp_path / "stopped", max_epochs=3)
    start(tmp_path / "whole", max_epochs=3)
    assert_same(content(tmp_path / "stopped"), content(tmp_path / "whole"))


def test_the_steps_are_the_same_when_they_are_shared_otherwise_from_a_checkpoint_on(tmp_path) -> None:
    options = {"max_epochs": 3, "precision": "64-true", "dropout": 0.0}
    start(tmp_path / "one", **options)
    start(tmp_path / "two", dies_after=8, **options)
    start(tmp_path / "two", accumulate_grad_batches=4, **options)
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-8, atol=1e-11)
    assert two["images_seen"] == one["images_seen"] == 120
    assert two["callbacks"] == one["callbacks"]  # the same validations


def test_curves_are_never_behind_the_checkpoint(tmp_path, monkeypatch) -> None:
    written = []
    original = pl.Trainer.save_checkpoint

    def save(self, *args, **kwargs):
        events = EventAccumulator(str(tmp_path / "events")).Reload()  # as a kill in this moment would leave them
        written.append((self.global_step - 1, [event.step for event in events.Scalars("train/loss")]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
    runner = trainer(
        tmp_path, logger=TensorBoardLogger(tmp_path, "", "events"), log_every_n_steps=1, max_epochs=1,
        enable_checkpointing=True, callbacks=[RollingCheckpoint(steps=1)],
    )  # fmt: skip
    runner.fit(DiffusionModule(network()), datamodule=Pictures(8))
    assert written == [
        (step, [*range(step + 1)]) for step in (0, 1, 2, 3, 4, 4)
    ]  # the last: before and after validation


def test_a_trial_saves_nothing(tmp_path) -> None:
    start(tmp_path, fast_dev_run=True)
    assert not last(tmp_path).exists()


@pytest.mark.parametrize("settings", [{"minutes": 0}, {"minutes": math.nan}, {"steps": 0}])
def test_intervals_are_positive(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RollingCheckpoint(**settings)


def test_a_run_that_was_moved_keeps_its_best(tmp_path) -> None:
    """Lightning alone forgets it, so that a worse checkpoint would be written over it."""
    old, new = Path("/before/runs/a/checkpoints"), tmp_path / "runs/a/checkpoints"
    best = {str(old / "best.ckpt"): torch.tensor(3.0)}
    paths = {"best_model_path": str(old / "best.ckpt"), "kth_best_model_path": str(old / "best.ckpt")}
    state = {"dirpath": str(old), "best_k_models": best, "best_model_score": torch.tensor(3.0), **paths}
    state |= {"last_model_path": "", "kth_value": torch.tensor(3.0)}
    trainer = SimpleNamespace(default_root_dir=str(tmp_path / "runs/a"))
    RollingCheckpoint().on_load_checkpoint(trainer, None, {"callbacks": {"ModelCheckpoint": state, "other": {}}})
    callback = ModelCheckpoint(new, monitor="fid")
    callback.load_state_dict(state)
    assert callback.best_model_path == str(new / "best.ckpt")
    assert callback.best_k_models == {str(new / "best.ckpt"): torch.tensor(3.0)}
    assert callback.kth_best_model_path == str(new / "best.ckpt")
    assert callback.best_model_score == 3

    state["dirpath"] = "/before/runs/b/checkpoints"  # another run's
    RollingCheckpoint().on_load_checkpoint(trainer, None, {"callbacks": {"ModelCheckpoint": state}})
    assert state["dirpath"] == "/before/runs/b/checkpoints"
