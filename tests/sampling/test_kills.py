"""Runs that are killed, and runs on several ranks, as the command line has them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import network

from ersde_lit.cli import main
from ersde_lit.training import DiffusionModule
from ersde_lit.training.averaged import SPEC_KEY

TESTS = Path(__file__).parents[1]
TOOLS = TESTS.parent / "tools"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = DiffusionModule(network())
    for weight in module.ema_denoiser.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, "small.ckpt")
    return "--ckpt_path=small.ckpt"


def test_two_ranks_make_what_one_makes_and_tell_once_what_fails_on_one(checkpoint, tmp_path) -> None:
    """Two commands on the same ranks; in the second, the second block, that of the second rank, cannot be written."""
    how = ["sample", checkpoint, "--seeds=0-40", "--nfe=3", "--batch_size=8", "--accelerator=cpu"]  # the last: of one
    fails = ["sample", checkpoint, "--seeds=0-9", "--nfe=1", "--batch_size=5", "--accelerator=cpu", "--out=a.npz"]
    assert main([*how, "--out=one.npz"]) == 0
    commands = [json.dumps([*how, "--out=two.npz", "--devices=2"]), json.dumps([*fails, "--devices=2"])]
    paths = os.pathsep.join([str(TESTS), *sys.path])
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "SAVE_FAILS_AT": "1", "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, "-m", "commands_on_ranks", *commands],
        env=os.environ | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.stderr == "ersde_lit: sample: --out a.npz cannot be written: No space left on device\n"
    assert ended.returncode == 2
    assert ended.stdout.count(" images in ") == 1  # some gloos have lines of their own
    assert ended.stdout.endswith("GiB a rank\n")
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert sorted(os.listdir(tmp_path)) == [".a.npz.parts", "one.npz", "small.ckpt", "two.npz"]
    assert main(fails) == 0
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "one.npz", "small.ckpt", "two.npz"]


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(monkeypatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    from kill_sampling import main

    assert main(kills=4, kills_a_run=2, images=400) == 0
    sys.modules.pop("kill_sampling")
