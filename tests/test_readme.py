"""What the README shows is what is run: its Python here, its commands by .ci/run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_solver_example_prints_what_it_says() -> None:
    code = next(block for block in blocks("python") if "SeededNoise" in block)
    names: dict = {}
    exec(code, names)
    assert names["x0"].shape == (1000, 3, 8, 8)
    assert (names["x0"].mean().item(), names["x0"].std().item()) == pytest.approx((0.30, 0.50), abs=0.005)


def test_ci_runs_the_commands_shown() -> None:
    script, shown = ((ROOT / name).read_text().replace("\\\n    ", "") for name in (".ci/run", "README.md"))
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


def test_files_shown_are_there() -> None:
    for path in re.findall(r"\b((?:configs|tools|ersde_lit)/[\w./*]+\w)", README):
        assert [*ROOT.glob(path)], path
