"""Weights as people keep them: wrapped, named by wrappers, averaged and not, in either format of torch.save."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hashed_weights import hashed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ersde_lit.cli import main
from ersde_lit.interop.weights.guided_flags import GuidedFlags
from ersde_lit.interop.weights.sources import read_source
from ersde_lit.interop.weights.torch_files import read_torch, state_dict

LEGACY = {"image_size": 8, "noise_schedule": "linear", "num_head_channels": 64, "use_new_attention_order": False}
PLAIN = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}
RAW = {name: weight + 1 for name, weight in PLAIN.items()}
KINDS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": weight for name, weight in PLAIN.items()}


WRAPPED = {
    "plain": PLAIN,
    "module": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled within": {name.replace("a.", "a._orig_mod."): weight for name, weight in PLAIN.items()},
    "both": prefixed("module._orig_mod."),
    **{name: {name: PLAIN, "step": 7, "args": [None, 0.5]} for name in ("state_dict", "ema", "model", "params_ema",
                                                                        "ema_state_dict", "model_state_dict")},
    "both, nested": {"model": {"state_dict": prefixed("module.")}, "epoch": 3},
    "raw too": {"model": RAW, "ema": PLAIN, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "params too": {"params": RAW, "params_ema": PLAIN},
    **{name: {"ema": {"step": 3, name: PLAIN}} for name in ("module", "shadow")},
    "an ema that holds none": {"model": PLAIN, "ema": {"decay": 0.999}},
}  # fmt: skip


def saved(content: object, path: Path, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@KINDS
@pytest.mark.parametrize("case", WRAPPED)
def test_the_weights_are_found(tmp_path, case: str, zipped: bool) -> None:
    path = saved(WRAPPED[case], tmp_path / "net.pt", zipped)
    weights, notes = state_dict(read_torch(path), path)
    assert weights.keys() == PLAIN.keys()
    assert all(torch.equal(weights[name], value) for name, value in PLAIN.items())
    assert any("'ema', not those under 'model'" in note for note in notes) == (case == "raw too")


@KINDS
def test_averages_of_torchs_own_class(tmp_path, zipped: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    path = saved(AveragedModel(net).state_dict(), tmp_path / "net.pt", zipped)
    assert state_dict(read_torch(path), path)[0].keys() == net.state_dict().keys()


@KINDS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**PLAIN, "module.a.bias": torch.ones(2)}, "has the weight 'a.bias' twice"),
        ({"model": {**PLAIN, "epoch": 3}}, "it has 'epoch', a int"),
        ({"optimizer": PLAIN}, "it has 'optimizer', a dict"),
        ({"model": {"model": {"model": {"model": PLAIN}}}}, "it has 'model', a dict"),
        ({"a": torch.zeros(1).expand(2**30)}, "no dense tensor|overlap"),
        ([PLAIN], "holds no dictionary"),
    ],
)
def test_what_is_not_found_is_one_line(tmp_path, content: object, message: str, zipped: bool) -> None:
    path = saved(content, tmp_path / "net.pt", zipped)
    with pytest.raises(ValueError, match=message) as caught:
        state_dict(read_torch(path), path)
    assert "\n" not in str(caught.value)


def test_containers_that_hold_themselves(tmp_path) -> None:
    content: dict = {"state_dict": PLAIN, "loop": []}
    content["loop"].append(content["loop"])
    path = saved(content, tmp_path / "net.pt", True)
    assert state_dict(read_torch(path), path)[0].keys() == PLAIN.keys()


@KINDS
def test_guided_diffusion_wrapped(tmp_path, capsys, zipped: bool) -> None:
    with np.load(Path(__file__).parents[2] / "data" / "guided_networks.npz") as vectors:
        state = hashed(json.loads(str(vectors["cases"]))["legacy"])
    raw = {name: weight + 1 for name, weight in state.items()}
    wrapped = {"model": raw, "ema": {f"module.{name}": weight for name, weight in state.items()}, "step": 5}
    saved(state, tmp_path / "plain.pt", True)
    saved(wrapped, tmp_path / "net.pt", zipped)
    flags = GuidedFlags(**LEGACY)
    plain, found = (read_source(tmp_path / name, flags) for name in ("plain.pt", "net.pt"))
    assert all(torch.equal(found.averaged[name], value) for name, value in plain.averaged.items())
    options = [f"--{name}={value}" for name, value in LEGACY.items()]
    assert main(["import", str(tmp_path / "net.pt"), f"--out={tmp_path}/net.ckpt", *options]) == 0
    assert "note             the weights are those under 'ema', not those under 'model'" in capsys.readouterr().out


def test_a_checkpoint_of_ours_in_the_older_format_needs_no_import(tmp_path) -> None:
    path = saved({"ersde_lit": {}, "state_dict": {}}, tmp_path / "net.ckpt", False)
    with pytest.raises(ValueError, match="needs no import"):
        read_source(path)


@pytest.mark.parametrize("other", [{"ema_params": RAW}, {"model_ema_state": RAW}, {"ema": [*RAW.values()]}])
def test_other_weights_that_are_passed_over_are_named(tmp_path, other: dict) -> None:
    path = saved({"model": PLAIN, **other}, tmp_path / "net.pt", True)
    weights, (note,) = state_dict(read_torch(path), path)
    assert torch.equal(weights["a.bias"], PLAIN["a.bias"])
    assert note == f"the weights are those under 'model', not those under {next(iter(other))!r}"


@pytest.mark.parametrize(
    ("thing", "name"),
    [(argparse.Namespace(lr=1), "argparse.Namespace"), (nn.Linear(2, 2), "Linear"), (np.float64(0.3), "numpy")],
)
def test_what_is_no_weight_is_named(tmp_path, thing: object, name: str) -> None:
    path = saved({"model": PLAIN, "args": thing}, tmp_path / "net.pt", True)
    with pytest.raises(ValueError, match=f"more than weights: it names .*{name}") as caught:
        read_torch(path)
    assert str(caught.value).isprintable()
