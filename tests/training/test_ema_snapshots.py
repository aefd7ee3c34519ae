from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_on_ranks
from safetensors.torch import load_file
from tiny import Noise, network, trainer
from trajectory import Trajectory, distance, flat

from ersde_lit.training import AdamWConfig, DiffusionModule, PowerEMA
from ersde_lit.training.snapshots import snapshot_path


def fit(folder, *callbacks: pl.Callback, ckpt_path=None, **changes) -> DiffusionModule:
    pl.seed_everything(0, verbose=False)
    module = DiffusionModule(network(), optimizer=AdamWConfig(1e-2))
    trainer(folder, callbacks=[*callbacks], **changes).fit(module, datamodule=Noise(), ckpt_path=ckpt_path)
    return module


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "ema_snapshots").iterdir()}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_averages_are_of_the_weights_after_each_optimiser_step(tmp_path, accumulate: int) -> None:
    ema, trajectory = PowerEMA(10**9, lengths=[0.05, 0.2]), Trajectory()
    fit(tmp_path, ema, trajectory, max_epochs=5, accumulate_grad_batches=accumulate)
    assert len(trajectory.images) == {1: 20, 3: 10}[accumulate]
    for length in (0.05, 0.2):
        assert distance(flat(ema.averages[length]), trajectory.average(length)) < 1e-6


def test_averages_are_kept_in_full_precision() -> None:
    ema, module, runner = PowerEMA(10**9), DiffusionModule(network()).bfloat16(), SimpleNamespace(global_step=0)
    ema.on_train_start(runner, module)
    assert {value.dtype for average in ema.averages.values() for value in average.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_snapshots_hold_all_averages(tmp_path, dtype: str) -> None:
    ema = PowerEMA(48, lengths=[0.1, 0.05], dtype=dtype)
    fit(tmp_path, ema, max_epochs=3)
    assert ema.snapshots == [48, 96]
    assert sorted(files(tmp_path)) == ["0000000048.safetensors", "0000000096.safetensors"]
    kept = load_file(snapshot_path(tmp_path, 96))
    assert len(kept) == 2 * len(ema.averages[0.1])
    for length, average in ema.averages.items():
        for name, value in average.items():
            assert torch.equal(kept[f"{length}/{name}"], value.to(getattr(torch, dtype)))


def test_a_snapshot_is_due_at_the_first_step_beyond_a_multiple(tmp_path) -> None:
    fit(tmp_path, PowerEMA(20), max_epochs=2)  # 64 images, 8 a step
    assert sorted(files(tmp_path)) == [f"00000000{images}.safetensors" for images in (24, 40, 64)]


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path) -> None:
    whole, resumed = PowerEMA(24), PowerEMA(24)
    halfway = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, whole, halfway, max_epochs=3, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["PowerEMA"]["snapshots"] == [24, 48]
    first = files(tmp_path)
    for images in (72, 96):  # what the stopped run wrote after its last checkpoint
        snapshot_path(tmp_path, images).write_bytes(b"other")
    fit(tmp_path, resumed, max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert files(tmp_path) == first
    assert (resumed.images, resumed.snapshots) == (whole.images, whole.snapshots) == (96, [24, 48, 72, 96])
    for length, average in whole.averages.items():
        for name, value in average.items():
            assert torch.equal(resumed.averages[length][name], value), name


def test_a_training_that_began_without_it_counts_as_standing_still_until_then(tmp_path) -> None:
    fit(tmp_path, ModelCheckpoint(tmp_path, filename="early"), max_epochs=2, enable_checkpointing=True)
    ema, trajectory = PowerEMA(10**9), Trajectory()
    early = torch.load(tmp_path / "early.ckpt", weights_only=True)["state_dict"]
    trajectory.images, trajectory.weights = [64], [flat({k: v for k, v in early.items() if k.startswith("denoiser.")})]
    fit(tmp_path, ema, trajectory, max_epochs=3, ckpt_path=tmp_path / "early.ckpt")
    assert distance(flat(ema.averages[0.1]), trajectory.average(0.1)) < 1e-6


def test_other_lengths_or_another_training_are_refused(tmp_path) -> None:
    ema = PowerEMA(10**9)
    fit(tmp_path, ema, ModelCheckpoint(tmp_path, filename="end"), enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"the checkpoint's lengths are \[0.05, 0.1\], not \[0.05\]"):
        fit(tmp_path, PowerEMA(10**9, lengths=[0.05]), max_epochs=3, ckpt_path=tmp_path / "end.ckpt")
    with pytest.raises(ValueError, match="has followed another training"):
        fit(tmp_path, ema)


def test_a_trial_leaves_nothing_behind(tmp_path) -> None:
    fit(tmp_path, PowerEMA(1), fast_dev_run=True)
    assert not (tmp_path / "ema_snapshots").exists()


def test_a_write_that_fails_leaves_nothing_half(tmp_path, monkeypatch) -> None:
    def torn(tensors, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr("ersde_lit.training.snapshots.save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        fit(tmp_path, PowerEMA(8))
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_images": 0}, "every_n_images must be at least 1"),
        ({"lengths": []}, "one or more different numbers"),
        ({"lengths": [0.1, 0.1]}, "one or more different numbers"),
        ({"lengths": [0.1, 0.3]}, "at most 0.2887"),
        ({"dtype": "bfloat16"}, "float16 or float32"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerEMA(**{"every_n_images": 100, **settings})


def test_two_ranks_track_the_same_and_the_first_writes(tmp_path) -> None:
    done = run_on_ranks(Path(__file__).with_name("ema_on_ranks.py"), "track", [str(tmp_path)])
    assert done.codes == [0, 0], done.said
    one, two = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    for name in ("raw", "average", "images"):
        assert np.array_equal(one[name], two[name])
    assert one["images"] == 64
    assert not np.array_equal(one["raw"], one["average"])
    assert sorted(files(tmp_path / "0")) == ["0000000048.safetensors"]
    assert not (tmp_path / "1" / "ema_snapshots").exists()
