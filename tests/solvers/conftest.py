"""The problems that samplers are tested on, and how other people's schedulers are run on them in float64."""

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ersde_lit.solvers.loop import sample
from ersde_lit.solvers.tableau import Solver, Tableau


@dataclass(frozen=True)
class Mixture:
    """Exact denoiser of two isotropic Gaussians in four dimensions."""

    mu: Tensor = field(default_factory=lambda: torch.tensor([[0.8, -0.5, 0.3, 0.1], [-0.6, 0.4, -0.9, 0.2]]).double())
    var: Tensor = field(default_factory=lambda: torch.tensor([0.3, 0.05]).double() ** 2)
    weights: Tensor = field(default_factory=lambda: torch.tensor([0.4, 0.6]).double())

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        v = self.var + lam**2
        gap = y[:, None] - self.mu
        posterior = (self.weights.log() - 2 * v.log() - (gap**2).sum(-1) / (2 * v)).softmax(1)
        return (posterior[..., None] * (y[:, None] - (lam**2 / v)[:, None] * gap)).sum(1)


class Noise:
    """Fixed standard normal noise of 8 points in four dimensions."""

    def __init__(self) -> None:
        self.draws = torch.randn(65, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def initial(self) -> Tensor:
        return self.draws[-1]

    def step(self, i: int) -> Tensor:
        return self.draws[i]


class _DoubleTorch(ModuleType):
    """torch, for modules that cast to float32 on their way: the cast becomes one to float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@dataclass(frozen=True)
class Rivals:
    """Runs of the same problem from the same start with the same noise: ours, and other people's."""

    monkeypatch: pytest.MonkeyPatch
    denoiser: Mixture = field(default_factory=Mixture)
    noise: Noise = field(default_factory=Noise)

    def start(self, lams: Tensor) -> Tensor:
        return lams[0] * self.noise.initial()

    def ours(self, solver: Solver, lams: Tensor) -> Tensor:
        return sample(self.denoiser, solver.tableau(lams), self.start(lams), noise=self.noise)

    def in_double(self, scheduler: Any) -> Any:
        """A diffusers scheduler that computes in float64 and takes its noise from ours."""
        module = importlib.import_module(type(scheduler).__module__)
        self.monkeypatch.setattr(module, "torch", _DoubleTorch("torch"))
        if hasattr(module, "randn_tensor"):
            draws = iter(self.noise.draws)
            self.monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(draws))
        return scheduler

    def diffusers_vp(self, scheduler: Any, lams: Tensor) -> Tensor:
        """A VP scheduler that steps by its `sigmas`, set to `lams`, with prediction_type "sample"."""
        scheduler = self.in_double(scheduler)
        alphas = 1 / (1 + lams**2).sqrt()
        x = alphas[0] * self.start(lams)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # numpy functions of tensors
            scheduler.set_timesteps(len(lams) - 1)
            scheduler.sigmas = lams
            scheduler.timesteps = torch.arange(len(lams) - 1, 0, -1)
            for t, alpha, lam in zip(scheduler.timesteps, alphas[:-1], lams[:-1], strict=True):
                x = scheduler.step(self.denoiser(x / alpha, lam), t, x).prev_sample
        return x / alphas[-1]


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rivals]:
    with monkeypatch.context() as patch:
        yield Rivals(patch)


@pytest.fixture
def edm_lams() -> Callable[..., Tensor]:
    """``(n, end)``: n steps from 80 to `end`, rho = 7, or if `end` is 0 to 0.002 and from there to 0."""

    def lams(n: int, end: float) -> Tensor:
        ramp = torch.linspace(80 ** (1 / 7), (end or 0.002) ** (1 / 7), n + bool(end), dtype=torch.float64) ** 7
        return ramp if end else torch.cat([ramp, torch.zeros(1, dtype=torch.float64)])

    return lams


_COUNTS = torch.tensor([64.0, 128.0, 256.0, 512.0], dtype=torch.float64)
_STD = 0.4  # of the Gaussian data on which orders are measured


def _uniform(n: int, spacing: str) -> Tensor:
    if spacing == "lam":
        return torch.linspace(5, 0.05, n + 1, dtype=torch.float64)
    return torch.logspace(math.log10(5), math.log10(0.05), n + 1, dtype=torch.float64)


def _slope(errors: list[float]) -> float:
    x = _COUNTS.log() - _COUNTS.log().mean()
    return -(x @ torch.tensor(errors, dtype=torch.float64).log() / (x @ x)).item()


@pytest.fixture
def local_order() -> Callable[..., float]:
    """``(solver, spacing="log", corrector=False)``: the order at which a table's rows converge, from exact history.

    On one Gaussian, whose ODE has the solution ``sqrt(lam^2 + std^2)``: rows are applied to its exact values, and the
    sum of their errors regressed on N = 64 .. 512. The first rows, of lower order, are left out.
    """

    def order(solver: Solver, spacing: str = "log", corrector: bool = False) -> float:
        return _slope([_row_error(solver.tableau(_uniform(int(n), spacing)), corrector) for n in _COUNTS])

    return order


def _row_error(tableau: Tableau, corrector: bool) -> float:
    lams = tableau.lams
    y = (lams**2 + _STD**2).sqrt()
    x0 = _STD**2 / (lams**2 + _STD**2) * y
    h = x0 if tableau.history == "x0" else (y - x0) / lams
    weights = tableau.corrector if corrector else tableau.c
    assert weights is not None
    total = 0.0
    for i in range(5, len(tableau.r) - int(corrector)):
        newest = i + int(corrector)
        used = h[newest - weights.shape[1] + 1 : newest + 1].flip(0)
        total += abs(tableau.r[i] * y[i] + weights[i] @ used - y[i + 1]).item()
    return total


@pytest.fixture
def weak_order() -> Callable[[Solver], float]:
    """``(solver)``: the order at which the variance of a run's last state converges, on one Gaussian, without sampling.

    All is linear there, so the state is run as its coefficients in the start and in each step's noise.
    """

    def order(solver: Solver) -> float:
        return _slope([_variance_error(solver.tableau(_uniform(int(n), "log"))) for n in _COUNTS])

    return order


def _variance_error(tableau: Tableau) -> float:
    lams = tableau.lams
    basis = torch.eye(len(lams), dtype=torch.float64)

    class Basis:
        def step(self, i: int) -> Tensor:
            return basis[i + 1]

    start = basis[0] * (lams[0] ** 2 + _STD**2).sqrt()
    y = sample(lambda y, lam: _STD**2 / (_STD**2 + lam**2) * y, tableau, start, noise=Basis())
    return abs((y**2).sum() - (lams[-1] ** 2 + _STD**2)).item()
