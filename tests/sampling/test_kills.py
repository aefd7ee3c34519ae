"""Runs that are killed, and runs on several ranks, as the command line has them."""

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

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = DiffusionModule(network())
    for weight in module.ema_denoiser.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, "small.ckpt")
    return "--ckpt_path=small.ckpt"


def test_two_ranks_make_what_one_makes(checkpoint, tmp_path) -> None:
    how = [checkpoint, "--seeds=0-40", "--nfe=3", "--batch_size=8", "--accelerator=cpu"]  # 6 blocks, the last of one
    assert main(["sample", *how, "--out=one.npz"]) == 0
    two = [sys.executable, "-m", "ersde_lit", "sample", *how, "--out=two.npz", "--devices=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run(two, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(" images in ") == 1  # some gloos have lines of their own
    assert ended.stdout.endswith("GiB a rank\n")
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one.npz", "small.ckpt", "two.npz"]


@pytest.mark.slow
def test_what_fails_on_a_rank_is_told_once(checkpoint, tmp_path) -> None:
    """The second block, that of the second rank, cannot be written."""
    how = [checkpoint, "--seeds=0-9", "--nfe=1", "--batch_size=5", "--accelerator=cpu", "--out=a.npz"]
    script = """
import sys
from ersde_lit.cli import main
from ersde_lit.files import disk_errors
from ersde_lit.sampling.work import Work
save = Work.save
def full(work, number, images):
    if number == 1:
        with disk_errors(work.out):
            raise OSError(28, "No space left on device")
    save(work, number, images)
Work.save = full
sys.exit(main(sys.argv[1:]))
"""
    (tmp_path / "full.py").write_text(script)
    failing = [sys.executable, "full.py", "sample", *how, "--devices=2"]
    ended = subprocess.run(failing, capture_output=True, text=True, timeout=600)
    assert ended.stderr == "ersde_lit: sample: --out a.npz cannot be written: No space left on device\n"
    assert ended.returncode == 2
    assert not Path("a.npz").exists()
    assert main(["sample", *how]) == 0


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(monkeypatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    from kill_sampling import main

    assert main(kills=4, kills_a_run=2, images=400) == 0
    sys.modules.pop("kill_sampling")
