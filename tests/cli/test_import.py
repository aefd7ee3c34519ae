from pathlib import Path

import numpy as np
import pytest
import torch
from edm_files import ADM, dumps, network, snapshot
from safetensors import safe_open

from ersde_lit.cli import main
from ersde_lit.cli.guided_model import GuidedModel
from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.networks import DhariwalUNet
from ersde_lit.training import load


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A folder with a snapshot of EDM's for 8x8 grey digits, and one of 3 channels."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    grey = DhariwalUNet(8, 1, 1, label_dim=10, **ADM).requires_grad_(False)
    Path("digits.pkl").write_bytes(dumps(snapshot(grey, "EDMPrecond", img_channels=1, label_dim=10, **ADM)))
    Path("colour.pkl").write_bytes(dumps(snapshot(network("DhariwalUNet", ADM), "VPPrecond",
                                                  model_type="DhariwalUNet", **ADM)))  # fmt: skip
    return tmp_path


def test_what_was_found_is_said(inside, capsys) -> None:
    assert main(["import", "colour.pkl", "--out=net.ckpt"]) == 0
    count = sum(p.numel() for p in network("DhariwalUNet", ADM).parameters())
    assert capsys.readouterr().out.splitlines() == [
        "found            EDM snapshot, VPPrecond of a DhariwalUNet",
        "architecture     DhariwalUNet, 3x8x8, no classes",
        "preconditioning  vp, prediction eps, process VP",
        f"parameters       {count:,}; all 148 tensors used",
        "lam              0.0010005 to 152.17",
        "checkpoint       net.ckpt",
    ]


def test_images_come_of_it_and_it_is_published_and_read_again(inside, capsys) -> None:
    assert main(["import", "digits.pkl", "--out=net.ckpt"]) == 0
    assert main(["export", "net.ckpt", "--out=net.safetensors"]) == 0
    assert "net.safetensors: averaged weights of net.ckpt" in capsys.readouterr().out
    opened = GuidedModel.open("net.ckpt", ModelOptions(), GuidanceOptions(), MachineOptions())
    assert opened.weights == "averaged weights, as imported"  # by whatever average their authors took
    assert main(["import", "net.safetensors", "--out=again.ckpt"]) == 0
    for name in ("net", "again"):
        assert main(["sample", f"--ckpt_path={name}.ckpt", "--seeds=0-2", "--nfe=3", f"--out={name}.npz"]) == 0
    with np.load("net.npz") as one, np.load("again.npz") as other:
        assert np.array_equal(one["arr_0"], other["arr_0"])
    with safe_open("net.safetensors", "pt") as file:
        assert all(name.startswith("averaged.") for name in file.keys())  # noqa: SIM118


def test_training_goes_on_from_it(inside, capsys) -> None:
    assert main(["import", "digits.pkl", "--out=net.ckpt", "--config_out=net.yaml"]) == 0
    assert "fit --config net.yaml --ckpt_path net.ckpt --data ..." in capsys.readouterr().out
    quick = ["--config=net.yaml", "--data=Digits", "--data.batch_size=32", "--trainer.max_epochs=1",
             "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu",
             "--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"]  # fmt: skip
    assert main(["validate", *quick, "--ckpt_path=net.ckpt"]) == 0
    assert main(["fit", *quick, "--ckpt_path=net.ckpt", "--run=tuned", "--model.optimizer.lr=1e-3"]) == 0
    before, after = load("net.ckpt"), load("runs/tuned/checkpoints/last.ckpt")
    assert after.images_seen == 64
    name = "enc.8x8_conv.weight"
    moved = (after.denoiser.network.state_dict()[name] - before.denoiser.network.state_dict()[name]).abs().max()
    assert 0 < moved < 5e-3  # two steps of Adam from these weights
    assert after.recipe.lr == 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "absent.pkl", "--out=net.ckpt"], "there is nothing at absent.pkl"),
        (["import", "colour.pkl"], "out"),
        (["import", "colour.pkl", "--out=colour.pkl"], "--out colour.pkl exists"),
        (["import", "colour.pkl", "--out=absent/net.ckpt"], "there is no folder"),
        (["import", "colour.pkl", "--out=net.ckpt", "--config_out=digits.pkl"], "--config_out digits.pkl exists"),
        (["import", "colour.pkl", "--out=net.ckpt", "--image_size=64"], "is a flag of guided-diffusion"),
        (["import", "colour.pkl", "--out=net.ckpt", "--noise_schedule=sqrt"], "noise_schedule"),
        (["import", "colour.pkl", "--out=net.ckpt", "--diffusion_steps=1"], "--diffusion_steps is at least 2"),
        (["import", "colour.pkl", "--out=net.ckpt", "--timestep_respacing=250"], "is a flag of guided-diffusion"),
        (["import", "colour.pkl", "--out=net.ckpt", "--dropout=2"], "--dropout is a probability"),
        (["import", "colour.pkl", "--out=net.ckpt", "--trust=1"], "unrecognized"),
        (["import", ".", "--out=net.ckpt"], "no folder of diffusers' DDPMPipeline"),
        (["export", "absent.ckpt", "--out=net.safetensors"], "nothing at absent.ckpt"),
        (["export", "colour.pkl", "--out=net.safetensors"], "damaged, truncated or not a checkpoint"),
        (["export", "colour.pkl", "--out=digits.pkl"], "--out digits.pkl exists"),
        (["export", "colour.pkl", "--out=net.ckpt2"], "name it so"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(inside, capsys, arguments: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in inside.iterdir()}
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ersde_lit: {arguments[0]}: ")
    assert message in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in inside.iterdir()} == before
