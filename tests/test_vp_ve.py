"""The VP and VE digits, trained as configured: the slow test of the whole path."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ersde_lit.cli import main

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_vp", "digits_ve"])
def test_generated_digits_are_read_as_their_label(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tools")
    assert main(["fit", "--config", str(ROOT / f"configs/{name}.yaml"), "--trainer.enable_progress_bar=false"]) == 0
    checkpoint = f"runs/{name}/checkpoints/last.ckpt"
    options = ["--seeds=0-499", "--nfe=20", "--solver=er_sde", "--out=samples.npz"]
    assert main(["sample", "--ckpt_path", checkpoint, *options]) == 0
    from digits_accuracy import read_right

    with np.load("samples.npz") as file:
        assert read_right(file["arr_0"], file["arr_1"]) >= 0.95
    sys.modules.pop("digits_accuracy")
