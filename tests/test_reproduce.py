"""Every configuration of a published figure, from download to table, on small stand-ins of the same formats."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from edm_files import ADM, NCSN, dumps, edm2_model, edm2_snapshot, network, snapshot
from inception_weights import random_weights

from ersde_lit.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "reproduce").glob("*.yaml"))
PAPER = {"solver": "er_sde", "order": 3, "noise_scale": "er_sde_5", "paper": True, "grid": "edm"}


def checkpoints(settings: dict) -> list[str]:
    return [settings[option] for option in ("ckpt_path", "guide") if option in settings]


def stand_ins(settings: dict, folder: Path) -> None:
    """What is downloaded: snapshots with small networks, and statistics of 2048 features."""
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    if settings["reference"].endswith(".npz"):
        np.savez(folder / settings["reference"], **statistics)
    else:
        (folder / settings["reference"]).write_bytes(pickle.dumps({"num_images": 50_000, "fid": statistics}))
    for name in (Path(checkpoint).stem for checkpoint in checkpoints(settings)):
        (folder / f"{name}.pkl").write_bytes(dumps(pickled(name)))


def pickled(name: str) -> dict:
    if name.startswith("edm2"):
        return edm2_snapshot(*edm2_model(10))
    model_type, kwargs = ("DhariwalUNet", ADM) if "adm" in name else ("SongUNet", NCSN)
    classes = 10 if "-cond-" in name else 0
    torch.manual_seed(0)
    made = network(model_type, kwargs, classes)
    return snapshot(made, "EDMPrecond", model_type=model_type, label_dim=classes, **kwargs)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_dry_run(path: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(path.read_text())
    command = ["evaluate", f"--config={path}", "--seeds", "100000-100002", "--weights=inception.pth"]
    assert main(command) == 2
    missing = capsys.readouterr().err
    for option in ("ckpt_path", "guide", "reference"):
        assert f"--{option} {settings.get(option)}" in missing or option not in settings
    assert "--weights inception.pth" in missing
    assert not [*tmp_path.iterdir()]

    random_weights(tmp_path / "inception.pth")
    stand_ins(settings, tmp_path)
    for checkpoint in checkpoints(settings):
        assert main(["import", f"{Path(checkpoint).stem}.pkl", "--out", checkpoint]) == 0
    assert main(command) == 0
    cells = [json.loads(line) for line in Path(settings["out"], "cells.jsonl").read_text().splitlines()]
    options = {(cell["sampler"], cell["nfe"]): cell["description"]["options"] for cell in cells}
    assert all((cell["images"], cell["seeds"]) == (3, "100000-100002") and cell["scores"]["fid"] > 0 for cell in cells)
    if "edm2" in path.stem:
        assert options.keys() == {("published", 63), ("default", 20), ("default", 10)}
        assert options["published", 63]["solver"] == "heun"
        assert all(chosen.get("guide_scale") == settings.get("guide_scale") for chosen in options.values())
    else:
        assert options.keys() == {("published", settings["nfe"])}
        assert PAPER.items() <= options["published", settings["nfe"]].items()
    assert "published" in capsys.readouterr().out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_whole_is_asked_for(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    assert settings["seeds"] == ["100000-149999"]
    assert "nfe" not in settings or f"nfe{settings['nfe']}" in path.stem
    assert f"configs/reproduce/{path.name}" in path.read_text()
