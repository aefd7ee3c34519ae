"""Choices written in one word, and classes of users as YAML names them."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from ersde_lit.cli.options.sampler import SamplerOptions
from ersde_lit.cli.options.sweep import SweepOptions
from ersde_lit.cli.parser import make, read_inline
from ersde_lit.denoisers import VE
from ersde_lit.errors import UserError
from ersde_lit.solvers import Sampler, Tableau, TableSampler


class Untyped:
    def tableau(self, lams):
        r = lams[1:] / lams[:-1]
        return Tableau(lams, r, (1 - r)[:, None], torch.zeros_like(r))


class Typed(Untyped):
    def tableau(self, lams: Tensor) -> Tableau:
        return super().tableau(lams)


class OtherName(Untyped):
    def tableau(self, sigmas: Any, scale: float = 1.0):
        return super().tableau(sigmas)


class NoSolver:
    def table(self, lams):
        return lams


@pytest.fixture(autouse=True)
def importable(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "of_a_user", sys.modules[__name__])


def choice(name: str) -> dict[str, Any]:
    return {
        "class_path": "ersde_lit.solvers.TableSampler",
        "init_args": {"solver": {"class_path": f"of_a_user.{name}"}},
    }


@pytest.mark.parametrize("name", ["Untyped", "Typed", "OtherName"])
def test_a_solver_needs_no_annotations(name) -> None:
    sampler, _ = make("samplers", Sampler, choice(name))
    assert isinstance(sampler, TableSampler)
    assert type(sampler.solver).__name__ == name


def test_a_class_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="NoSolver"):
        make("samplers", Sampler, choice("NoSolver"))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("er_sde", {}),
        ("er_sde:order=2:nodes=0.5:relative", {"order": 2, "nodes": 0.5, "relative": True}),
        ("er_sde:noise_scale=power:1.5", {"noise_scale": "power:1.5"}),
        ("er_sde:noise_scale=eta:er_sde_3:0.5:order=2", {"noise_scale": "eta:er_sde_3:0.5", "order": 2}),
        ("er_sde:noise_scale=ode:add_mean", {"noise_scale": "ode", "add_mean": True}),
        ("er_sde:noise_scale=window:1:0.05:2:0.25:paper", {"noise_scale": "window:1:0.05:2:0.25", "paper": True}),
    ],
)
def test_options_are_read_inline(text, options) -> None:
    assert read_inline("solver", text) == ("er_sde", options)


SAMPLERS = [
    ("er_sde:order=2:noise_scale=power:1.5", {"solver": "er_sde", "order": 2, "noise_scale": "power:1.5"}),
    ("er_sde:order=1:rho=5", {"solver": "er_sde", "order": 1, "rho": 5.0}),
    (
        "ddim:eta=0.5:grid=log_uniform:sigma_max=40",
        {"solver": "ddim", "eta": 0.5, "grid": "log_uniform", "sigma_max": 40.0},
    ),
    ("heun:churn=4", {"solver": "heun", "churn": 4.0}),
]


@pytest.mark.parametrize(("text", "options"), SAMPLERS)
def test_solver_and_solvers_take_the_same_words_and_flags_mean_the_same(text, options) -> None:
    by_flags = SamplerOptions(nfe=5, **options).sampler(VE())
    assert SamplerOptions(nfe=5, solver=text).sampler(VE())[1] == by_flags[1]
    (choice,) = SweepOptions(nfe=5, solvers=text).choices(VE())
    assert choice.named == by_flags[1]


def test_grids_take_options_too() -> None:
    inline = SamplerOptions(solver="ddim", grid="edm:rho=5:sigma_max=40").sampler(VE())
    assert inline[1] == SamplerOptions(solver="ddim", grid="edm", rho=5.0, sigma_max=40.0).sampler(VE())[1]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"solver": "er_sde:order=2", "order": 3}, "twice"),
        ({"solver": "er_sde:steps=2"}, "no option 'steps'"),
        ({"solver": "er_sde:order=two"}, "order"),
        ({"solver": "er_sde:lam_max=2"}, "sigma_max"),
        ({"solver": "er_sde:grid=edm", "grid": "edm"}, "twice"),
        ({"grid": "edm:order=2"}, "no option 'order'"),
        ({"solver": "eular"}, "choose from"),
    ],
)
def test_wrong_words_are_named(options, word) -> None:
    with pytest.raises(UserError, match=word):
        SamplerOptions(**options)
