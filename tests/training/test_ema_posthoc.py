import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Noise, network, trainer
from trajectory import Trajectory, averaged, distance, flat

from ersde_lit.training import AdamWConfig, AtomicCheckpointIO, DiffusionModule, PowerEMA, load, reconstruct
from ersde_lit.training.snapshots import snapshot_path, write_snapshot

EVERY, TOTAL = 64, 1600


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 200 real optimiser steps with 25 snapshots, the raw weights after every step, and its PowerEMA."""
    folder = tmp_path_factory.mktemp("run")
    pl.seed_everything(0, verbose=False)
    module = DiffusionModule(network(), optimizer=AdamWConfig(5e-3, decay=0.3))
    ema, trajectory = PowerEMA(EVERY), Trajectory()
    runner = trainer(folder, callbacks=[ema, trajectory], max_epochs=50, plugins=[AtomicCheckpointIO()])
    runner.fit(module, datamodule=Noise())
    runner.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder, trajectory, ema


@pytest.fixture
def run(trained, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(trained[0], tmp_path / "run")


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.07, 0.10, 0.12, 0.15, 0.2, 0.25])
def test_any_length_is_that_of_tracking_it(trained, sigma_rel: float) -> None:
    folder, trajectory, _ = trained
    exact = trajectory.average(sigma_rel)
    made = reconstruct(folder, sigma_rel)
    assert distance(averaged(made), exact) < 1e-3
    assert distance(averaged(made), exact) < 0.02 * distance(trajectory.weights[-1], exact)
    assert made["power_ema"]["error"] < 5e-3


def test_as_of_an_earlier_snapshot(trained) -> None:
    folder, trajectory, _ = trained
    made = reconstruct(folder, 0.08, images=15 * EVERY)
    assert distance(averaged(made), trajectory.average(0.08, 15 * EVERY)) < 1e-3
    assert distance(averaged(made), trajectory.average(0.08)) > 1e-2
    assert (made["power_ema"]["images"], made["power_ema"]["snapshots"]) == (15 * EVERY, 15)


def test_a_tracked_length_is_given_back(trained) -> None:
    folder, _, ema = trained
    assert distance(averaged(reconstruct(folder, 0.1)), flat(ema.averages[0.1])) < 1e-6


def test_all_but_the_averaged_weights_is_the_last_checkpoint_s(trained, tmp_path) -> None:
    folder, *_ = trained
    made = reconstruct(folder, 0.12)
    AtomicCheckpointIO().save_checkpoint(made, tmp_path / "made.ckpt")
    model, last = load(tmp_path / "made.ckpt"), load(folder / "checkpoints" / "last.ckpt")
    assert model.spec == last.spec
    assert model.images_seen == last.images_seen == TOTAL
    for name, value in last.denoiser.state_dict().items():
        assert torch.equal(model.denoiser.state_dict()[name], value)
    assert distance(flat(model.ema_denoiser.state_dict()), averaged(made)) == 0
    assert not torch.equal(model.sample([0], [0], nfe=3), last.sample([0], [0], nfe=3))
    record = torch.load(tmp_path / "made.ckpt", weights_only=True)["power_ema"]
    assert record["sigma_rel"] == 0.12
    assert record["gamma"] == pytest.approx(5.254, abs=1e-3)


def test_training_goes_on_from_it(trained, tmp_path) -> None:
    AtomicCheckpointIO().save_checkpoint(reconstruct(trained[0], 0.12), tmp_path / "made.ckpt")
    module = DiffusionModule(network(), optimizer=AdamWConfig(5e-3, decay=0.3))
    runner = trainer(tmp_path, callbacks=[PowerEMA(EVERY)], max_epochs=51, plugins=[AtomicCheckpointIO()])
    runner.fit(module, datamodule=Noise(), ckpt_path=tmp_path / "made.ckpt")
    assert module.images_seen == TOTAL + 32


def test_snapshots_after_the_checkpoint_play_no_part(run, trained) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    tracked = checkpoint["callbacks"]["PowerEMA"]  # as if the run had been stopped at its 15th snapshot
    tracked["snapshots"], tracked["images"] = tracked["snapshots"][:15], 15 * EVERY
    kept = load_file(snapshot_path(run, 15 * EVERY))
    for length, average in tracked["averages"].items():
        for name in average:
            average[name] = kept[f"{length}/{name}"]
    torch.save(checkpoint, path)
    made = reconstruct(run, 0.08)
    assert made["power_ema"]["images"] == 15 * EVERY
    assert distance(averaged(made), trained[1].average(0.08, 15 * EVERY)) < 1e-3
    with pytest.raises(ValueError, match="no snapshot at 1024 images"):
        reconstruct(run, 0.08, images=16 * EVERY)


def test_it_does_without_snapshots_that_were_removed(run, trained) -> None:
    for images in range(EVERY, TOTAL, 2 * EVERY):
        snapshot_path(run, images).unlink()
    made = reconstruct(run, 0.12)
    assert made["power_ema"]["snapshots"] == 13
    assert distance(averaged(made), trained[1].average(0.12)) < 1e-3


def test_lengths_that_the_snapshots_cannot_give_are_refused(trained, run) -> None:
    with pytest.raises(
        ValueError, match=r"give sigma_rel 0.002 only to \d+.\d%: choose a length nearer to 0.05 or 0.1"
    ):
        reconstruct(run, 0.002)
    shutil.rmtree(run / "ema_snapshots")
    with pytest.raises(ValueError, match=r"1 snapshots of .* give sigma_rel 0.2 only to"):
        reconstruct(run, 0.2)


@pytest.mark.parametrize("images", [1, 1000, 10**9])
def test_positions_without_snapshot_are_refused(run, images: int) -> None:
    with pytest.raises(ValueError, match=rf"no snapshot at {images} images; the nearest: \d+ and \d+"):
        reconstruct(run, 0.1, images)


def spoil(path: Path, how: str) -> None:
    tensors, content = load_file(path), bytearray(path.read_bytes())
    length, name = next(iter(tensors)).split("/")
    averages = {0.05: {}, 0.1: {}}
    for key, value in tensors.items():
        averages[float(key.split("/")[0])][key.split("/")[1]] = value
    match how:
        case "cut":
            path.write_bytes(content[:5000])
        case "text":
            path.write_text("no snapshot")
        case "flipped":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "foreign":
            save_file(tensors, path)
        case "lacking":
            del averages[float(length)][name]
            write_snapshot(path, averages, torch.float32)
        case "shape":
            averages[float(length)][name] = torch.ones(3, 3, 3)
            write_snapshot(path, averages, torch.float32)
        case "nan":
            averages[float(length)][name].view(-1)[0] = torch.nan
            write_snapshot(path, averages, torch.float32)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "is damaged"),
        ("text", "is damaged"),
        ("flipped", "is damaged"),
        ("foreign", "is damaged or of another run"),
        ("lacking", "is damaged or of another run"),
        ("shape", "of another network"),
        ("nan", "not finite"),
    ],
)
def test_a_spoilt_snapshot_is_named(run, how: str, message: str) -> None:
    spoil(snapshot_path(run, 10 * EVERY), how)
    with pytest.raises(ValueError, match=f"0000000640.safetensors .*{message}") as caught:
        reconstruct(run, 0.12)
    assert "\n" not in str(caught.value)


def test_runs_without_averages_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        reconstruct(tmp_path, 0.1)
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(DiffusionModule(network()), datamodule=Noise())
    runner.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="no power-function averages: train with the callback"):
        reconstruct(tmp_path, 0.1)
