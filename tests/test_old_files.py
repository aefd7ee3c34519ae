"""Files written before rooms, classes and options were renamed: they load, resume and compare as they did.

tests/data/version_0_1 was made by its make.py with commit 237af98, under the paths that `place` restores.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_start import fit

from ersde_lit.cli import main
from ersde_lit.training import DiffusionModule, load, load_classifier

OLD = Path(__file__).parent / "data" / "version_0_1"
CHECKPOINT = "runs/half/checkpoints/last.ckpt"
SAMPLE = ("sample", f"--ckpt_path={CHECKPOINT}", "--seeds=0-3", "--nfe=3", "--solver=er_sde", "--noise_scale=power:1.5",
          "--order=2", "--grid=edm", "--batch_size=2", "--accelerator=cpu")  # fmt: skip
EVALUATE = ("evaluate", f"--ckpt_path={CHECKPOINT}", "--solvers=er_sde:order=2", "--grids=edm:sigma_max=20",
            "--seeds", "0-19", "--data=ersde_lit.data.Digits", "--features=classifier", "--out=results",
            "--accelerator=cpu")  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder as it was left."""
    for name in ("classifier.ckpt", "model.safetensors", "samples.npz", "guided.npz"):
        shutil.copy(OLD / name, tmp_path)
    shutil.copytree(OLD / "results", tmp_path / "results")
    shutil.copytree(OLD / "cache", tmp_path / "cache")
    shutil.copytree(OLD / "half_run", tmp_path / "runs" / "half")
    shutil.copytree(OLD / "half_samples", tmp_path / ".half.npz.parts")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(path: str) -> np.ndarray:
    return np.load(path)["arr_0"].astype(int)


def test_checkpoints_load(place) -> None:
    module = load(CHECKPOINT)
    assert isinstance(module, DiffusionModule)
    assert module.images_seen == 12 * 128
    classifier = load_classifier("classifier.ckpt")
    assert classifier(torch.zeros(2, 1, 8, 8), torch.tensor(1.0)).shape == (2, 10)


def test_a_run_resumes(place, capsys) -> None:
    changes = [
        f"--trainer.callbacks.init_args.{change}" for change in ("num_samples=64", "nfes=[2]", "nearest_images=0")
    ]
    assert main(fit(*changes, "--trainer.logger=false", "--run=half")) == 0
    assert "Resuming runs/half" in capsys.readouterr().out
    assert load(CHECKPOINT).images_seen == 2 * 12 * 128


def test_its_configuration_is_read(place, capsys) -> None:
    assert main(["validate", "--config=runs/half/config.yaml", f"--ckpt_path={CHECKPOINT}", "--run=half"]) == 0
    assert "fid/er_sde/nfe2" in capsys.readouterr().out


def test_weights_are_imported(place) -> None:
    assert main(["import", "model.safetensors", "--out=model.ckpt"]) == 0
    old, new = load(CHECKPOINT).ema_denoiser.state_dict(), load("model.ckpt").ema_denoiser.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_samples_are_known_as_finished(place, capsys) -> None:
    assert main([*SAMPLE, "--sigma_max=40", "--out=samples.npz"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main([*SAMPLE, "--sigma_max=39", "--out=samples.npz"]) == 2
    assert "sigma_max" in capsys.readouterr().err


def test_samples_can_be_made_again(place) -> None:
    for old in ("samples.npz", "guided.npz"):
        assert (
            main(["sample", f"--like={old}", "--seeds=0-3", "--accelerator=cpu", "--out=again.npz", "--overwrite"]) == 0
        )
        assert np.abs(images(old) - images("again.npz")).max() <= 1


def test_interrupted_samples_go_on(place, capsys) -> None:
    assert main([*SAMPLE, "--sigma_max=40", "--out=half.npz"]) == 0
    assert "4 images in half.npz, NFE 3: 2 now" in capsys.readouterr().out
    assert np.abs(images("half.npz") - images("samples.npz")).max() <= 1


def test_cells_are_gone_on_with(place, capsys) -> None:
    before = Path("results/cells.jsonl").read_text()
    assert main([*EVALUATE, "--nfe=2"]) == 0
    assert Path("results/cells.jsonl").read_text() == before
    assert main([*EVALUATE, "--nfe=2,3"]) == 0
    records = [json.loads(line) for line in Path("results/cells.jsonl").read_text().splitlines()]
    assert [record["nfe"] for record in records] == [None, 2, 2, 3]


def test_cells_of_the_default_of_then_are_not_taken_for_todays(place, capsys) -> None:
    before = Path("results/cells.jsonl").read_text()
    assert main([*EVALUATE[:2], "--solvers=default", *EVALUATE[3:], "--nfe=2"]) == 2
    assert "default, NFE 2, seeds 0-19 was measured on other images, they differ in nodes" in capsys.readouterr().err
    assert Path("results/cells.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("command", "new"),
    [
        ([*SAMPLE, "--lam_max=40", "--out=x.npz"], "--sigma_max"),
        ([*SAMPLE, "--lam_min=0.01", "--out=x.npz"], "--sigma_min"),
        (["analyze", "--lam_max=40", "--out=x"], "--sigma_max"),
        ([*EVALUATE, "--nfe=2", "--grids=edm:lam_max=20"], "sigma_max"),
    ],
)
def test_old_spellings_of_options_name_the_new(place, capsys, command, new) -> None:
    assert main(command) == 2
    assert new in capsys.readouterr().err
