"""Every configuration of a published figure, from download to table, on small stand-ins of the same formats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from edm_files import ADM, NCSN, dumps, network, snapshot
from inception_weights import random_weights

from ersde_lit.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "reproduce").glob("*.yaml"))


def stand_ins(settings: dict, folder: Path) -> None:
    """What is downloaded: a snapshot of EDM's with a small network, and statistics of 2048 features."""
    name = Path(settings["ckpt_path"]).stem
    model_type, kwargs = ("DhariwalUNet", ADM) if "adm" in name else ("SongUNet", NCSN)
    classes = 10 if "-cond-" in name else 0
    torch.manual_seed(0)
    made = snapshot(
        network(model_type, kwargs, classes), "EDMPrecond", model_type=model_type, label_dim=classes, **kwargs
    )
    (folder / f"{name}.pkl").write_bytes(dumps(made))
    np.savez(folder / settings["reference"], mu=np.zeros(2048), sigma=np.eye(2048))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_dry_run(path: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(path.read_text())
    command = ["evaluate", f"--config={path}", "--seeds", "100000-100002", "--weights=inception.pth"]
    assert main(command) == 2
    missing = capsys.readouterr().err
    for option in ("ckpt_path", "reference"):
        assert f"--{option} {settings[option]}" in missing
    assert "--weights inception.pth" in missing
    assert not [*tmp_path.iterdir()]

    random_weights(tmp_path / "inception.pth")
    stand_ins(settings, tmp_path)
    name = Path(settings["ckpt_path"]).stem
    assert main(["import", f"{name}.pkl", "--out", settings["ckpt_path"]]) == 0
    assert main(command) == 0
    (cell,) = map(json.loads, Path(settings["out"], "cells.jsonl").read_text().splitlines())
    assert (cell["nfe"], cell["images"], cell["seeds"]) == (settings["nfe"], 3, "100000-100002")
    options = cell["description"]["options"]
    expected = {"solver": "er_sde", "order": 3, "noise_scale": "er_sde_5", "paper": True, "grid": "edm"}
    assert expected.items() <= options.items()
    assert cell["scores"]["fid"] > 0
    assert "published" in capsys.readouterr().out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_whole_is_asked_for(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    assert settings["seeds"] == ["100000-149999"]
    assert f"nfe{settings['nfe']}" in path.stem
    assert f"configs/reproduce/{path.name}" in path.read_text()
