"""Help and wrong options of every command answer before torch is imported."""

import json
import subprocess
import sys

import pytest

SAMPLE = ["sample", "--ckpt_path=x", "--out=x.npz"]
EVALUATE = ["evaluate", "--data=a.B", "--ckpt_path=a.ckpt", "--out=a"]
TUNE = ["tune", "--data=a.B", "--ckpt_path=a.ckpt", "--out=x.tables"]
RESTORE = ["restore", "--ckpt_path=.", "--images=.", "--out=x"]
COMMANDS = ("sample", "restore", "evaluate", "tune", "reference", "analyze", "data", "ema", "import", "export")
HELP = [["--help"], *([name, "--help"] for name in COMMANDS)]
REFUSED = [  # the command, and a word of the line that it prints
    ([*SAMPLE, "--seeds=0", "--nfe=0"], "nfe"),
    ([*SAMPLE, "--seeds=0-"], "--seeds"),
    ([*SAMPLE, "--seeds=0", "--out=absent/x.npz"], "no folder"),
    ([*SAMPLE, "--seeds=0", "--preset=fast", "--order=2"], "--preset"),
    ([*SAMPLE, "--seeds=0", "--guide=y"], "--guide"),
    ([*SAMPLE, "--seeds=0", "--cfgscale=2"], "there is no --cfgscale; did you mean --cfg_scale?"),
    ([*EVALUATE, "--solver=default"], "there is no --solver; did you mean --solvers?"),
    ([*SAMPLE, "--seeds=0"], "nothing at --ckpt_path x"),
    ([*SAMPLE, "--seeds=0", "--ckpt_path=.", "--solver=absent.tables"], "nothing at --solver absent.tables"),
    ([*SAMPLE, "--seeds=0", "--solver=x.tables", "--grid=edm"], "leave --grid out"),
    (["fit", "--config=absent.yaml"], "nothing at absent.yaml"),
    (["fit", "--ckpt_path=a.ckpt", "--init_from=b.ckpt"], "--init_from"),
    (["sample", "--like=absent.npz", "--seeds=0", "--out=x.npz"], "absent.npz"),
    (RESTORE[:-1], "out"),
    ([*RESTORE, "--nfe=0"], "nfe"),
    ([*RESTORE, "--solver=heun"], "--solver heun restores no images: choose from er_sde"),
    ([*RESTORE, "--solver=default"], "--solver default restores no images"),
    ([*RESTORE, "--solver=x.tables"], "--solver x.tables restores no images"),
    ([*RESTORE, "--solver=er_sde:steps=1"], "no option 'steps'"),
    ([*RESTORE, "--preset=fast"], "--preset"),
    ([*RESTORE, "--images=absent", "--clean=lost"], "nothing at --images absent, --clean lost"),
    ([*RESTORE, "--out=x.png"], "whose name has no ending"),
    (RESTORE, "--out x and --images . lie in one another"),
    ([*RESTORE, "--out=absent/x"], "no folder"),
    ([*EVALUATE, "--seeds=9-0"], "runs downwards"),
    (["evaluate", "--solvers=ddim"], "--data or --reference"),
    ([*TUNE, "--nfe=4,x"], "--nfe 4,x"),
    ([*TUNE, "--out=x.npz"], "name it so"),
    ([*TUNE, "--stages=colour"], "choose some of grid,drift,noise"),
    ([*TUNE, "--features=inception"], "Inception gives no gradients"),
    ([*TUNE, "--like=absent.tables"], "nothing at --ckpt_path a.ckpt, --like absent.tables"),
    (["tune", "--ckpt_path=a.ckpt", "--out=x.tables"], "--data or --reference"),
    (["reference", "x"], "out"),
    (["reference", "--out=x.npz"], "no images"),
    (["reference", "x", "--out=y"], ".npz"),
    (["analyze", "--out=x", "--nfe=1"], "nfe"),
    (["analyze", "--out=x", "--grid=edn"], "edm"),
    (["analyze", "--out=absent/x"], "no folder"),
    (["data", "x", "--size=0"], "size"),
    (["data"], "source"),
    (["ema", "runs/x", "--sigma_rel=-1", "--out=x.ckpt"], "sigma_rel"),
    (["import", "x.pkl", "--out=x.ckpt", "--num_heads=0"], "num_heads"),
    (["export", "x.ckpt"], "out"),
    (["export", "x.ckpt", "--out=x.safetensors"], "nothing at x.ckpt"),
    (["export", ".", "--out=x.ckpt", "--tables=x.tables"], "nothing at --tables x.tables"),
    (["import", "x.pkl", "--out=x.ckpt"], "nothing at x.pkl"),
    (["analyze", "--out=x", "--ckpt_path=x.ckpt"], "nothing at --ckpt_path x.ckpt"),
]
RUN_ALL = """
import contextlib, io, json, sys
sys.modules["torch"] = sys.modules["lightning"] = sys.modules["matplotlib"] = None
from ersde_lit.cli import main
answers = []
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except Exception as error:
            code = repr(error)
    answers.append([code, said.getvalue()])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[tuple[int, str]]:
    """Exit code and output of every command above, from one process that cannot import torch."""
    commands = json.dumps([*HELP, *(command for command, _ in REFUSED)])
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=commands, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("torch_free"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(HELP)), ids=map(" ".join, HELP))
def test_help(answers, number: int) -> None:
    code, said = answers[number]
    assert code == 0
    assert "usage: " in said


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[" ".join(command) for command, _ in REFUSED])
def test_wrong_options_get_one_line(answers, number: int) -> None:
    code, said = answers[len(HELP) + number]
    assert code == 2
    assert REFUSED[number][1] in said
    assert said.count("\n") == 1
