"""The same run on one process, on one that accumulates, and on two: the same weights and the same curves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_start import fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ersde_lit.cli import main
from ersde_lit.training.checkpoint import read

# Float64, so that sums taken in another order differ by 1e-13 or so and everything else shows; no dropout.
OPTIONS = [
    "--trainer.callbacks=null", "--trainer.precision=64-true", "--model.network.init_args.dropout=0",
    "--model.label_dropout=0.2", "--model.augment.probability=0.5", "--model.network.init_args.augment_dim=9",
    "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0", "--model.optimizer.warmup=500",
]  # fmt: skip
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the run "one", trained by one process in one batch a step."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(fit(*OPTIONS, "--run=one")) == 0
    return folder


@pytest.fixture(autouse=True)
def folder(trained, monkeypatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def run(*command: str, code: int = 0) -> str:
    """Runs a command to its end; returns what it printed."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": "0", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def curves(name: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(f"runs/{name}/logs").Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same_run(one: str, other: str) -> None:
    first, second = (read(f"runs/{name}/checkpoints/last.ckpt") for name in (one, other))
    for part in ("state_dict", "optimizer_states"):
        assert_close(second[part], first[part], part)
    assert second["images_seen"] == first["images_seen"] == 24 * 128
    losses, others = (curves(name)["train/loss"] for name in (one, other))
    assert [step for step, _ in others] == [step for step, _ in losses]
    assert [value for _, value in others] == pytest.approx([value for _, value in losses], rel=1e-6)  # kept as float32


def assert_close(one: Any, other: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        for k, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}.{k}")
    else:
        assert one == other, where


def test_accumulation_trains_the_same_weights() -> None:
    assert main(fit(*OPTIONS, "--run=accumulated", "--device_batch_size=32")) == 0
    assert_same_run("one", "accumulated")


def test_two_ranks_train_the_same_weights_and_end_together_a_run_that_diverges(folder) -> None:
    """Two commands on the same ranks."""
    two = fit(*OPTIONS, "--run=two", "--device_batch_size=32", *TWO)
    lost = fit(*OPTIONS, "--run=lost", "--model.optimizer.lr=1e9", *TWO)
    said = run("-m", "commands_on_ranks", json.dumps(two), json.dumps(lost), code=2)
    assert said.count("A step is 128 images: 2 device(s) x 2 accumulated batch(es) x 32 images.") == 1
    assert_same_run("one", "two")
    assert said.count("there is no good checkpoint") == 1
    assert "Traceback" not in said
    assert not (folder / "runs/lost/checkpoints").exists()


@pytest.mark.slow
def test_torchrun_starts_ranks_too() -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "--", "ersde_lit"]
    run(*torchrun, *fit(*OPTIONS, "--run=torchrun", *TWO))
    assert_same_run("one", "torchrun")


@pytest.mark.slow
def test_ranks_that_are_told_to_stop_save_together_and_one_may_go_on(folder) -> None:
    command = [sys.executable, "-m", "ersde_lit", *fit(*OPTIONS, "--run=stopped", "--checkpoint.steps=1", *TWO)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    while not (folder / "runs/stopped/checkpoints/previous.ckpt").exists():
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 143
    assert said.count("SIGTERM: saved runs/stopped/checkpoints/last.ckpt") == 1
    assert main(fit(*OPTIONS, "--run=stopped")) == 0
    assert_same_run("one", "stopped")
