import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from ersde_lit.cli import COMMANDS, main
from ersde_lit.cli.sample import GridName, SolverName
from ersde_lit.solvers import registry

LAST = "runs/digits/checkpoints/last.ckpt"


def sample(*options: str) -> int:
    return main(["sample", "--ckpt_path", LAST, *options])


def images(path) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"].astype(int)


def test_npz_holds_images_and_labels_drawn_from_the_seeds(inside) -> None:
    assert sample("--seeds=0-29", "--nfe=3", "--out=a.npz") == 0
    with np.load("a.npz") as file:
        assert file["arr_0"].shape == (30, 8, 8, 1)
        assert file["arr_0"].dtype == np.uint8
        assert len(set(file["arr_1"].tolist())) > 5


def test_images_depend_on_their_seed_alone(inside) -> None:
    assert sample("--seeds=0-9", "--nfe=4", "--out=ten.npz", "--batch_size=10") == 0
    assert sample("--seeds=0-9", "--nfe=4", "--out=in_threes.npz", "--batch_size=3") == 0
    assert sample("--seeds=3-5", "--nfe=4", "--out=three.npz") == 0
    ten = images("ten.npz")
    assert np.abs(images("in_threes.npz") - ten).max() <= 1
    assert np.abs(images("three.npz") - ten[3:6]).max() <= 1
    assert np.abs(ten[3] - ten[4]).max() > 1


def test_the_same_command_gives_the_same_bytes(inside) -> None:
    for out in ("once.npz", "twice.npz"):
        assert sample("--seeds=0-9", "--nfe=4", f"--out={out}", "--solver=heun") == 0
    assert Path("once.npz").read_bytes() == Path("twice.npz").read_bytes()
    with np.load("once.npz") as file:
        meta = json.loads(str(file["meta"]))
    assert (meta["nfe"], meta["solver"], meta["seeds"]) == (3, "'heun'", "0-9")


@pytest.mark.parametrize("solver", get_args(SolverName))
def test_every_solver_samples(inside, solver: str) -> None:
    assert sample("--seeds=0-1", "--nfe=5", f"--out={solver}.npz", f"--solver={solver}") == 0


@pytest.mark.parametrize("grid", get_args(GridName))
def test_every_grid_samples(inside, grid: str) -> None:
    assert sample("--seeds=0-1", "--nfe=5", f"--out=grid_{grid}.npz", f"--grid={grid}") == 0


def test_the_names_are_those_of_the_registry() -> None:
    assert set(get_args(SolverName)) == {"default", "heun", *registry.SOLVERS}
    assert set(get_args(GridName)) == {"uniform_t", *registry.GRIDS}


def test_options_of_er_sde_are_used(inside) -> None:
    assert sample("--seeds=0-1", "--nfe=6", "--out=o1.npz", "--order=1", "--noise_scale=ode") == 0
    assert sample("--seeds=0-1", "--nfe=6", "--out=o2.npz", "--solver=ddim") == 0
    assert sample("--seeds=0-1", "--nfe=6", "--out=o3.npz", "--order=2", "--noise_scale=sde", "--corrector=2") == 0
    assert np.abs(images("o1.npz") - images("o2.npz")).max() <= 1
    assert np.abs(images("o1.npz") - images("o3.npz")).max() > 1


def test_folder_and_zip(inside) -> None:
    assert sample("--seeds=7,9", "--nfe=2", "--out=folder", "--labels=3") == 0
    assert {p.name for p in Path("folder").iterdir()} == {"000007.png", "000009.png", "dataset.json", "meta.json"}
    assert sample("--seeds=7,9", "--nfe=2", "--out=some.zip", "--labels=all") == 0
    assert "00000/img00000007.png" in zipfile.ZipFile("some.zip").namelist()


def test_overwrite_replaces(inside) -> None:
    assert sample("--seeds=0", "--nfe=2", "--out=again.npz") == 0
    assert sample("--seeds=0-1", "--nfe=2", "--out=again.npz") == 2
    assert len(images("again.npz")) == 1
    assert sample("--seeds=0-1", "--nfe=2", "--out=again.npz", "--overwrite") == 0
    assert len(images("again.npz")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ckpt_path=absent.ckpt"], "no checkpoint at absent.ckpt"),
        (["--ckpt_path=cut.ckpt"], "damaged, truncated"),
        (["--ckpt_path=text.ckpt"], "damaged, truncated"),
        (["--nfe=0"], "--nfe"),
        (["--nfe=abc"], "--nfe"),
        (["--order=3.5"], "--order: Not of type PositiveInt"),
        (["--solver=best"], "expected one of 'default', 'er_sde'"),
        (["--grid=best"], "expected one of 'edm'"),
        (["--noise_scale=er_sde_9"], "er_sde_5"),
        (["--solver=ddim", "--noise_scale=sde"], "has no option 'noise_scale'"),
        (["--order=4", "--solver=ddim"], "has no option 'order'"),
        (["--corrector=0"], "--corrector"),
        (["--seeds=5-1"], "runs downwards"),
        (["--seeds=a"], "--seeds"),
        (["--seeds=1,1"], "given twice"),
        (["--labels=10"], "no class 10"),
        (["--labels=cat"], "--labels"),
        (["--batch_size=0"], "--batch_size"),
        (["--device=abacus"], "--device abacus"),
        (["--out=there.npz"], "there.npz exists"),
        (["--out=absent/x.npz"], "no folder"),
        (["--out=x.gif"], "unknown ending .gif"),
        (["--step=3"], "unrecognized arguments"),
        (["--config=absent.yaml"], "absent.yaml"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(inside, capsys, options: list[str], message: str) -> None:
    whole = (inside / LAST).read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("text.ckpt").write_text("no checkpoint")
    Path("there.npz").write_bytes(b"kept")
    Path("new.npz").unlink(missing_ok=True)
    assert sample("--seeds=0-3", "--nfe=5", "--out=new.npz", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: sample: ")
    assert message in error
    assert error.count("\n") == 1
    assert Path("there.npz").read_bytes() == b"kept"
    assert not Path("new.npz").exists()
    assert not list(inside.glob(".*.tmp"))


def test_required_options_are_asked_for(capsys) -> None:
    assert main(["sample"]) == 2
    assert "ckpt_path" in capsys.readouterr().err


def test_commands_that_do_not_exist_are_refused(capsys) -> None:
    assert main(["smaple"]) == 2
    assert "choose one of fit" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys, arguments: list[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if f"  {name} " not in out] == []


def test_help_and_typing_errors_do_not_wait_for_torch() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["lightning"] = None
from ersde_lit.cli import main
assert main(["--help"]) == 0 and main(["sample", "--help"]) == 0
assert main(["sample", "--ckpt_path=x", "--seeds=0", "--out=x.npz", "--nfe=0"]) == 2
assert main(["sample", "--ckpt_path=x", "--seeds=0-", "--out=x.npz"]) == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_bug_is_not_disguised_as_bad_input(inside, monkeypatch) -> None:
    def bug(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr("ersde_lit.training.load", bug)
    with pytest.raises(KeyError):
        sample("--seeds=0", "--out=bug.npz")
