"""Trainings spoilt in the middle: they end, and every checkpoint that is left is from before."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from tiny import Pictures, network, trainer

from ersde_lit.networks import ClassifierEncoder
from ersde_lit.training import (
    AdamWConfig,
    AtomicCheckpointIO,
    DiffusionModule,
    NoisyClassifier,
    PowerEMA,
    RollingCheckpoint,
)

WRITERS: dict[str, Callable[[Path], Checkpoint]] = {
    "rolling": lambda folder: RollingCheckpoint(steps=2),
    "best": lambda folder: ModelCheckpoint(folder / "checkpoints", monitor="val/loss", save_top_k=2),
    "newest": lambda folder: ModelCheckpoint(folder / "checkpoints", every_n_train_steps=2, save_last=True),
}


class Spoiler(Callback):
    """Does something to the module after a step."""

    def __init__(self, spoil: Callable[[pl.LightningModule], Any], after: int = 7) -> None:
        self.spoil, self.after = spoil, after

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.after:
            self.spoil(module)


def times(factor: float, part: str) -> Callable[[DiffusionModule], None]:
    """Multiplies all weights of a part."""

    def spoil(module: DiffusionModule) -> None:
        for weight in getattr(module, part).parameters():
            weight.mul_(factor)

    return spoil


def spoil_moments(module: DiffusionModule) -> None:
    module.optimizers().state[module.denoiser.network.enter.bias]["exp_avg_sq"][0] = math.inf


def spoil_losses(module: DiffusionModule) -> None:
    module.denoiser.network.leave[2].register_forward_hook(lambda layer, args, out: out * math.nan)


SPOILT = {
    "trained weights": times(math.nan, "denoiser"),
    "averaged weights": times(math.inf, "ema_denoiser"),
    "moments": spoil_moments,
    "trained weights, finite": times(1e12, "denoiser"),
    "loss": spoil_losses,
}


def fit(
    folder: Path, *callbacks: Callback, epochs: int = 3, module: pl.LightningModule | None = None, **options: Any
) -> None:
    """5 steps an epoch, a validation after each."""
    pl.seed_everything(0, verbose=False)
    options |= {"callbacks": [*callbacks], "plugins": [AtomicCheckpointIO()], "enable_checkpointing": True}
    runner = trainer(folder, max_epochs=epochs, **options)
    runner.fit(module or DiffusionModule(network()), datamodule=Pictures(8))


def kept(folder: Path) -> dict[str, int]:
    """The steps of the checkpoints in a folder, of which everything must be finite."""
    steps = {}
    for path in (folder / "checkpoints").glob("*"):
        checkpoint = torch.load(path, weights_only=True)
        moments = [state["exp_avg_sq"] for state in checkpoint["optimizer_states"][0]["state"].values()]
        assert all(value.isfinite().all() for value in [*checkpoint["state_dict"].values(), *moments])
        steps[path.name] = checkpoint["global_step"]
    return steps


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("what", SPOILT)
def test_what_has_diverged_is_never_saved(what: str, writer: str, tmp_path) -> None:
    with pytest.raises(FloatingPointError, match=rf"{what.partition(',')[0]}.*checkpoint is {tmp_path}") as ended:
        fit(tmp_path, Spoiler(SPOILT[what]), WRITERS[writer](tmp_path))
    steps = kept(tmp_path)
    assert steps
    assert max(steps.values()) <= 7 + (what == "loss")  # a first loss that is NaN is no reason
    named = Path(str(ended.value).rpartition(" ")[2])
    assert steps[named.name] == max(steps.values())


@pytest.mark.parametrize("writer", [lambda folder: RollingCheckpoint(), WRITERS["best"]], ids=["rolling", "best"])
def test_averages_that_are_absurd_are_not_saved(writer: Callable, tmp_path) -> None:
    with pytest.raises(FloatingPointError, match="averaged weights"):
        fit(tmp_path, Spoiler(times(1e12, "ema_denoiser")), writer(tmp_path))
    assert {*kept(tmp_path).values()} == {5}


def test_there_may_be_no_good_checkpoint(tmp_path) -> None:
    with pytest.raises(FloatingPointError, match=r"step 5.*1e\+06: loss.*there is no good checkpoint"):
        fit(tmp_path, Spoiler(spoil_losses, after=1), RollingCheckpoint(), epochs=1)
    assert not kept(tmp_path)


def test_the_checkpoint_that_a_training_began_with_counts_as_good(tmp_path) -> None:
    fit(tmp_path / "first", RollingCheckpoint(), epochs=1)
    begun = tmp_path / "first" / "checkpoints" / "last.ckpt"
    runner = trainer(tmp_path, max_epochs=2, callbacks=[Spoiler(spoil_losses)], plugins=[AtomicCheckpointIO()])
    runner.fit(DiffusionModule(network()), datamodule=Pictures(8), ckpt_path=begun)
    with pytest.raises(FloatingPointError, match=f"the last good checkpoint is {begun}"):
        runner.save_checkpoint(tmp_path / "own.ckpt")
    assert not (tmp_path / "own.ckpt").exists()


def with_losses_spoilt_in(*steps: int) -> DiffusionModule:
    module = DiffusionModule(network())
    module.denoiser.network.leave[2].register_forward_hook(
        lambda layer, args, out: out * math.nan if module.global_step + 1 in steps else out
    )
    return module


def train_with_losses_spoilt_in(steps: set[int], folder: Path, *plugins: Any) -> None:
    runner = trainer(folder, callbacks=[RollingCheckpoint(steps=1)], plugins=[*plugins], enable_checkpointing=True)
    runner.fit(with_losses_spoilt_in(*steps), datamodule=Pictures(8))


def test_some_losses_in_mid_run_are_no_reason(tmp_path) -> None:
    train_with_losses_spoilt_in({4, 6, 7}, tmp_path)
    assert kept(tmp_path) == {"last.ckpt": 10}


def test_a_last_step_that_was_left_out_is_no_reason(tmp_path) -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8))
    scaled.precision = "bf16-mixed"  # what a CPU computes in
    train_with_losses_spoilt_in({10}, tmp_path / "scaled", scaled)
    assert kept(tmp_path / "scaled") == {"last.ckpt": 10}
    with pytest.raises(FloatingPointError, match=r"1e\+06: .*loss"):
        train_with_losses_spoilt_in({10}, tmp_path / "plain")
    assert kept(tmp_path / "plain") == {"last.ckpt": 9, "previous.ckpt": 8}


def test_the_only_step_of_a_run_is_one(tmp_path) -> None:
    module = DiffusionModule(network())
    spoil_losses(module)
    runner = trainer(tmp_path, max_steps=1, callbacks=[RollingCheckpoint()], enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match="diverged by step 1"):
        runner.fit(module, datamodule=Pictures(8))


def test_a_single_loss_in_mid_run_stops_no_checkpoint_of_others(tmp_path) -> None:
    writer = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1)
    fit(tmp_path, writer, module=with_losses_spoilt_in(6))
    assert 6 in kept(tmp_path).values()


def test_sigterm_after_a_single_loss_saves_and_ends_as_ever(tmp_path) -> None:
    stop = Spoiler(lambda _: os.kill(os.getpid(), signal.SIGTERM), after=6)
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, stop, RollingCheckpoint(), module=with_losses_spoilt_in(6))
    assert ended.value.code == 143
    assert kept(tmp_path)["last.ckpt"] == 6


def test_the_last_step_may_not_blow_up_the_weights(tmp_path) -> None:
    """Its loss was that of the weights before."""
    module = DiffusionModule(network(), optimizer=AdamWConfig(1e9, warmup=0))
    with pytest.raises(FloatingPointError, match=r"above 1e\+06: .*trained weights"):
        fit(tmp_path, RollingCheckpoint(), module=module, max_steps=1, limit_val_batches=0)
    assert not kept(tmp_path)


@pytest.mark.parametrize("spoil", [*SPOILT.values()][:4], ids=[*SPOILT][:4])
def test_no_training_goes_on_from_a_spoilt_checkpoint(spoil: Callable, tmp_path, monkeypatch) -> None:
    module = DiffusionModule(network())
    with monkeypatch.context() as patch:  # as one that was written before they were guarded
        patch.setattr(DiffusionModule, "check_sound", lambda *args: None)
        runner = trainer(tmp_path, max_epochs=1)
        runner.fit(module, datamodule=Pictures(8))
        with torch.no_grad():
            spoil(module)
        runner.save_checkpoint(tmp_path / "spoilt.ckpt")
    runner = trainer(tmp_path, max_epochs=2)
    with pytest.raises(ValueError, match="after its training had diverged"):
        runner.fit(DiffusionModule(network()), datamodule=Pictures(8), ckpt_path=tmp_path / "spoilt.ckpt")


def test_in_mid_run_a_checkpoint_waits_for_a_finite_loss(tmp_path) -> None:
    """Weights that were spoilt just before show only in the next loss."""
    with pytest.raises(FloatingPointError):
        fit(tmp_path, Spoiler(times(1e12, "denoiser"), after=8), RollingCheckpoint(steps=3))
    assert max(kept(tmp_path).values()) <= 8


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}])
def test_losses_that_are_absurd_are_as_bad(options: dict[str, Any], tmp_path) -> None:
    """As finite ones of 1e21 are, which a learning rate of 1e9 gives."""
    module = DiffusionModule(network())
    module.denoiser.network.leave[2].register_forward_hook(lambda layer, args, out: out + 1e9)
    with pytest.raises(FloatingPointError, match=r"1e\+06: .*loss"):
        fit(tmp_path, RollingCheckpoint(), epochs=1, module=module, **options)
    assert not kept(tmp_path)


def test_sigterm_saves_nothing_spoilt(tmp_path) -> None:
    def spoil(module: DiffusionModule) -> None:
        times(math.nan, "denoiser")(module)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(FloatingPointError, match="trained weights"):
        fit(tmp_path, Spoiler(spoil), RollingCheckpoint(steps=2))
    assert max(kept(tmp_path).values()) <= 7


@pytest.mark.parametrize(("factor", "dtype"), [(math.nan, "float32"), (1e9, "float16")])  # beyond float16's range
def test_no_snapshot_is_spoilt(factor: float, dtype: Any, tmp_path) -> None:
    with pytest.raises(FloatingPointError, match="power-function averages"):
        fit(tmp_path, Spoiler(times(factor, "denoiser")), PowerEMA(8, dtype=dtype))
    assert len([*(tmp_path / "ema_snapshots").iterdir()]) == 6


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}])
def test_classifiers_are_guarded_too(options: dict[str, Any], tmp_path) -> None:
    module = NoisyClassifier(ClassifierEncoder((1, 4, 4), 3, width=8, multipliers=(1,), blocks=1, attention=()))
    with pytest.raises(FloatingPointError, match=r"1e\+06: .*(trained weights|loss)"):
        fit(tmp_path, Spoiler(times(1e20, "network")), RollingCheckpoint(steps=2), module=module, **options)
    assert max(kept(tmp_path).values()) <= 7


def test_what_another_rank_finds_counts_too(tmp_path, monkeypatch) -> None:
    runner = trainer(tmp_path)
    runner.fit(DiffusionModule(network()), datamodule=Pictures(8))
    runner.save_checkpoint(tmp_path / "sound.ckpt")
    monkeypatch.setattr(runner.strategy, "reduce_boolean_decision", lambda decision, all: not all)
    with pytest.raises(FloatingPointError, match="trained weights"):
        runner.save_checkpoint(tmp_path / "spoilt.ckpt")
    monkeypatch.setattr(type(runner), "local_rank", 1)
    with pytest.raises(SystemExit) as quiet:  # the first rank has said it
        runner.save_checkpoint(tmp_path / "spoilt.ckpt")
    assert quiet.value.code == 0
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["sound.ckpt"]
