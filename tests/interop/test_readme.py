"""What the README shows of other people's programs runs."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ersde_lit.cli.options.sweep import SweepOptions
from ersde_lit.solvers import SeededNoise

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, word: str) -> str:
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in text)


def test_the_scheduler_example() -> None:
    pytest.importorskip("diffusers")
    names: dict[str, Any] = {}
    exec(block("python", "ERSDEScheduler"), names)
    assert [image.size for image in names["images"]] == [(8, 8)] * 4


def test_the_k_diffusion_example() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(block("python", "sample_er_sde"), names)
    assert (names["x0"].mean().item(), names["x0"].std().item()) == pytest.approx((0.30, 0.50), abs=0.1)


def test_the_rivals_of_the_yaml_example() -> None:
    for name in ("diffusers", "k_diffusion", "torchsde", "torchdiffeq"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    samplers = yaml.safe_load(block("yaml", "DiffusersSampler"))["samplers"]
    noise = SeededNoise(range(3), (2,))
    for choice in SweepOptions(nfe=[5], samplers=samplers).choices(lambda y, lam: y):
        assert choice.sampler(lambda y, lam: 0.25 * y / (0.25 + lam**2), noise, 5).shape == (3, 2)
