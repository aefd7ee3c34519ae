import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_start import fit

from ersde_lit.cli import main

CONFIG = """
trainer:
  callbacks:
    - class_path: ersde_lit.training.PowerEMA
      init_args: {every_n_images: 128, lengths: [0.05, 0.10]}
"""
RUN, LAST = "runs/digits", "runs/digits/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run that kept snapshots."""
    folder = tmp_path_factory.mktemp("ema")
    (folder / "power_ema.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(fit("--config", "power_ema.yaml")) == 0
    return folder


@pytest.fixture
def inside(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def spoilt(trained, tmp_path, monkeypatch):
    """Copies of the run, each with something wrong."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cut", "damaged", "without", "few"):
        shutil.copytree(trained / RUN, Path("runs") / name)
    cut, damaged = Path("runs/cut/checkpoints/last.ckpt"), Path("runs/damaged/ema_snapshots/0000000256.safetensors")
    for path in (cut, damaged):
        path.write_bytes(path.read_bytes()[:5000])
    checkpoint = torch.load(LAST, weights_only=True)
    del checkpoint["callbacks"]["PowerEMA"]
    torch.save(checkpoint, "runs/without/checkpoints/last.ckpt")
    shutil.rmtree("runs/few/ema_snapshots")
    Path("there.ckpt").write_bytes(b"kept")
    return tmp_path


def test_the_checkpoint_is_sampled_from_and_evaluated_like_any_other(inside, capsys) -> None:
    before = Path(LAST).read_bytes()
    assert main(["ema", RUN, "--sigma_rel=0.12", "--out=long.ckpt"]) == 0
    assert (
        "long.ckpt: average of sigma_rel 0.12 (gamma 5.254) at 3072 images, from 24 snapshots"
        in capsys.readouterr().out
    )
    for path, out in ((LAST, "last.npz"), ("long.ckpt", "long.npz")):
        assert main(["sample", f"--ckpt_path={path}", "--seeds=0-3", "--nfe=3", f"--out={out}"]) == 0
    with np.load("last.npz") as last, np.load("long.npz") as long:
        assert not np.array_equal(last["arr_0"], long["arr_0"])
    assert main(["validate", *fit("--config=power_ema.yaml", "--ckpt_path=long.ckpt")[1:]]) == 0
    assert Path(LAST).read_bytes() == before
    assert main(["export", "long.ckpt", "--out=long.safetensors"]) == 0
    assert main(["import", "long.safetensors", "--out=again.ckpt"]) == 0
    how = ["--nfe=1", "--seeds=0-19", "--data=ersde_lit.data.Digits", "--features=classifier", "--solvers=ddim"]
    power = "power-function average, sigma_rel 0.12) after 3,072 "
    for path, said in ((LAST, "EMA, half-life"), ("long.ckpt", power), ("again.ckpt", power)):
        assert main(["evaluate", f"--ckpt_path={path}", f"--out=of_{Path(path).stem}", *how]) == 0
        assert said in Path(f"of_{Path(path).stem}/results.md").read_text()


def test_gamma_and_an_earlier_moment(inside) -> None:
    assert main(["ema", RUN, "--gamma=5", "--images=1024", "--out=early.ckpt"]) == 0
    record = torch.load("early.ckpt", weights_only=True)["power_ema"]
    assert (record["images"], record["snapshots"]) == (1024, 8)
    assert record["gamma"] == pytest.approx(5, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["runs/absent"], "nothing at runs/absent"),
        (["runs/cut"], "last.ckpt is damaged"),
        (["runs/damaged"], "0000000256.safetensors is damaged"),
        (["runs/without"], "no power-function averages: train with the callback ersde_lit.training.PowerEMA"),
        (["runs/few", "--sigma_rel=0.2"], "give sigma_rel 0.2 only to"),
        ([RUN, "--sigma_rel=0.3"], "at most 0.2887"),
        ([RUN, "--sigma_rel=0"], "--sigma_rel"),
        ([RUN, "--sigma_rel=nan"], "--sigma_rel"),
        ([RUN, "--sigma_rel=0.0001"], "give sigma_rel 0.0001 only to"),
        ([RUN, "--gamma=5"], "--sigma_rel or --gamma"),
        ([RUN, "--sigma_rel=null", "--gamma=-1"], "--gamma"),
        ([RUN, "--sigma_rel=null"], "--sigma_rel or --gamma"),
        ([RUN, "--images=100"], "no snapshot at 100 images; the nearest: 128 and 256"),
        ([RUN, "--images=0"], "--images"),
        ([RUN, "--out=there.ckpt"], "there.ckpt exists"),
        ([RUN, "--out=absent/x.ckpt"], "there is no folder"),
        ([RUN, "--length=3"], "unrecognized arguments"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(spoilt, capsys, options: list[str], message: str) -> None:
    assert main(["ema", "--sigma_rel=0.12", "--out=new.ckpt", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: ema: ")
    assert message in error
    assert error.count("\n") == 1
    assert Path("there.ckpt").read_bytes() == b"kept"
    assert sorted(path.name for path in spoilt.iterdir()) == ["runs", "there.ckpt"]
