"""The commands and the Python of the README and of the guides run: the Python here, the commands by .ci/run."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ersde_lit.cli
import ersde_lit.interop
import ersde_lit.training
from ersde_lit.cli.options.sweep import SweepOptions
from ersde_lit.solvers import SeededNoise

ROOT = Path(__file__).parents[1]
README, RESULTS = ((ROOT / name / "README.md").read_text() for name in (".", "tools/results"))
GUIDES = {path: path.read_text() for path in (ROOT / "ersde_lit").rglob("__init__.py")}


def block(text: str | None, language: str, word: str) -> str:
    return next(found for found in re.findall(rf"```{language}\n(.*?)```", text or "", re.DOTALL) if word in found)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_solver_example_prints_what_it_says() -> None:
    names: dict[str, Any] = {}
    exec(block(README, "python", "SeededNoise"), names)
    assert names["x0"].shape == (1000, 3, 8, 8)
    assert (names["x0"].mean().item(), names["x0"].std().item()) == pytest.approx((0.30, 0.50), abs=0.005)


def test_ci_runs_the_commands_shown() -> None:
    script = (ROOT / ".ci/run").read_text().replace("\\\n    ", "")
    shown = "\n".join([README, *(text.replace("\\\\\n        ", "") for text in GUIDES.values())])
    for command in (
        "fit --config configs/digits.yaml",
        "--seeds 0-499 --nfe 20 --out",
        "tools/digits_accuracy.py",
        "last.ckpt --solvers default,dpm++2m,heun --nfe 5,10 --seeds 0-1796 1797-3593 --data ersde_lit.data.Digits",
        "analyze --solvers er_sde,dpm++2m --noise_scales ode,er_sde_5,sde --nfe 10 --out",
    ):
        assert command in shown
        assert command in script
    assert 'pip install -e ".[dev]" && pytest' in README


def test_every_command_shown_is_one() -> None:
    texts = [README, RESULTS, *GUIDES.values()]
    commands = {name for text in texts for name in re.findall(r"python -m\s+ersde_lit\s+(\w+)", text)} - {"COMMAND"}
    assert {"fit", "sample", "evaluate", "analyze", "data", "ema", "import", "reference"} <= commands
    assert commands <= ersde_lit.cli.COMMANDS.keys()


@pytest.mark.parametrize("folder", [".", "tools/results"])
def test_files_shown_are_there(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    for path in re.findall(r"(?<![\w/])((?:configs|tools|ersde_lit)/[\w./*]+\w)", text):
        assert path.endswith("mine.yaml") or [*ROOT.glob(path)], path
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        assert (ROOT / folder / link).exists(), link


def test_every_result_is_listed_with_its_script() -> None:
    for path in (ROOT / "tools/results").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in RESULTS
    for script in re.findall(r"`python (tools/\w+\.py)`", RESULTS):
        assert (ROOT / script).is_file()


def test_the_scheduler_example() -> None:
    pytest.importorskip("diffusers")
    names: dict[str, Any] = {}
    exec(block(ersde_lit.interop.__doc__, "python", "ERSDEScheduler"), names)
    assert [image.size for image in names["images"]] == [(8, 8)] * 4


def test_the_k_diffusion_example() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(block(ersde_lit.interop.__doc__, "python", "sample_er_sde"), names)
    assert (names["x0"].mean().item(), names["x0"].std().item()) == pytest.approx((0.30, 0.50), abs=0.1)


def test_the_example_of_a_saved_model(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block(ersde_lit.interop.__doc__, "python", "save_pretrained"), names)
    assert names["images"].shape == (4, 1, 8, 8)


def test_the_rivals_of_the_yaml_example() -> None:
    for name in ("diffusers", "k_diffusion", "torchsde", "torchdiffeq"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    samplers = yaml.safe_load(block(ersde_lit.interop.__doc__, "yaml", "DiffusersSampler"))["samplers"]
    noise = SeededNoise(range(3), (2,))
    for choice in SweepOptions(nfe=[5], samplers=samplers).choices(lambda y, lam: y):
        assert choice.sampler(lambda y, lam: 0.25 * y / (0.25 + lam**2), noise, 5).shape == (3, 2)


def test_the_averages_of_the_yaml_example() -> None:
    (callback,) = yaml.safe_load(block(ersde_lit.training.__doc__, "yaml", "PowerEMA"))["trainer"]["callbacks+"]
    assert ersde_lit.training.PowerEMA(**callback["init_args"]).every_n_images == 5000
