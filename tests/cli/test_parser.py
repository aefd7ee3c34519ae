"""Solvers of one's own, as YAML names them."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from ersde_lit.cli.parser import make
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
