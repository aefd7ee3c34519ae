"""What we use of Lightning and torch that they do not promise, to be checked before another Lightning is allowed."""

import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from tiny import Noise, network, trainer

from ersde_lit.training import AdamWConfig, DiffusionModule
from ersde_lit.training.resume import counters

CHECKED = Requirement("lightning>=2.6.6,<2.7")
WHAT_TO_DO = """this Lightning is unknown. See that these still mean what they did, then raise the bound here and in
pyproject.toml: the state of its loops that training/resume.py writes (tests/training/test_resume.py, all modes);
`_batches_that_stepped`, the step of logged pictures in evaluation/callback.py; torch's `_step_supports_amp_scaling`,
set in training/optimizer.py; torch._foreach_lerp_ in training/ema.py."""


def test_this_version_has_been_checked() -> None:
    assert CHECKED.specifier.contains(version("lightning")), WHAT_TO_DO


def test_the_package_asks_for_a_version_that_has_been_checked() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert [line for line in map(Requirement, project["dependencies"]) if line.name == "lightning"] == [CHECKED]


def test_the_loops_keep_the_state_that_a_resumed_run_is_given(tmp_path) -> None:
    runner = trainer(tmp_path)
    runner.fit(DiffusionModule(network()), datamodule=Noise())
    assert_has(runner.fit_loop.state_dict(), counters(1, 2, 3, 1))


def assert_has(state: dict[str, Any], keys: dict[str, Any]) -> None:
    assert keys.keys() <= state.keys(), WHAT_TO_DO
    for key, value in keys.items():
        if isinstance(value, dict):
            assert_has(state[key], value)


def test_a_scaler_asks_the_optimiser_who_unscales() -> None:
    assert hasattr(AdamWConfig().optimizer([torch.zeros(1, requires_grad=True)]), "_step_supports_amp_scaling")
    assert "_step_supports_amp_scaling" in inspect.getsource(torch.amp.grad_scaler), WHAT_TO_DO
