import weakref

import pytest
import torch
from tiny import network

from ersde_lit.denoisers import VE, VP, Denoiser, Flow
from ersde_lit.errors import UserError
from ersde_lit.solvers import ERSDE, DPMSolverPP, SeededNoise, TableSampler, default, grids, power, sample
from ersde_lit.solvers.oracles import Gaussian
from ersde_lit.solvers.registry import solver
from ersde_lit.tuning import FREEDOMS, LearnedTable, full_history
from ersde_lit.tuning.learned import bytes_of_a_call

DATA = Gaussian.spectrum(8)


def noise(n: int = 16) -> SeededNoise:
    return SeededNoise(range(n), (8,), dtype=torch.float64)


@pytest.mark.parametrize("name", ["ddpm", "dpm++2m", "unipc2", "ipndm", "sde_dpm++2m"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_it_starts_as_its_start(name: str, n: int) -> None:
    start = full_history(solver(name).tableau(grids.edm(n)))
    table = LearnedTable(start)
    found = table.tableau()
    for a, b in zip(found[:4], start[:4], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert found.calls is None
    y = start.lams[0] * noise().initial()
    expected = sample(DATA, start, y, noise=noise())
    torch.testing.assert_close(table.run(DATA, noise()), expected, rtol=0, atol=1e-11)


def test_run_is_what_sample_makes_of_its_table() -> None:
    table = LearnedTable(default(5).solver.tableau(default(5).grid(5)))
    generator = torch.Generator().manual_seed(0)
    for p in table.parameters():
        p.data += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    tableau = table.tableau()
    assert tableau.calls is not None
    expected = sample(DATA, tableau, tableau.lams[0] * noise().initial(), noise=Flipped(table))
    torch.testing.assert_close(table.run(DATA, noise()), expected, rtol=0, atol=1e-12)


class Flipped:
    """Noise with the signs of b, which `tableau` drops."""

    def __init__(self, table: LearnedTable):
        self.sign = table.coefficients().b.detach().sign()

    def step(self, i: int) -> torch.Tensor:
        return self.sign[i] * noise().step(i)


@pytest.mark.parametrize("recomputed", [0, 2, None])
def test_gradients_are_those_of_differences(recomputed: int | None) -> None:
    start = ERSDE(2, power(1.5), nodes=2.0, relative=True).tableau(grids.edm(3, lam_max=5.0))
    table = LearnedTable(start)
    loss = table.run(DATA, noise(), recomputed=recomputed).square().mean()
    loss.backward()
    for name, p in table.named_parameters():
        with torch.no_grad():
            step, values = 1e-5, []
            for sign in (1, -1):
                p.view(-1)[-1] += sign * step
                values.append(table.run(DATA, noise()).square().mean())
                p.view(-1)[-1] -= sign * step
        difference = float(values[0] - values[1]) / (2 * step)
        assert p.grad is not None
        assert float(p.grad.view(-1)[-1]) == pytest.approx(difference, rel=1e-5, abs=1e-9), name


def test_what_a_call_remembers_is_counted() -> None:
    first, second = torch.nn.Linear(10, 100, bias=False), torch.nn.Linear(100, 10, bias=False)
    net = torch.nn.Sequential(first, torch.nn.Sigmoid(), second).requires_grad_(False)

    def denoiser(y: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        return lam * net(y)

    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        forward = staticmethod(denoiser)

    y, lam = torch.ones(7, 10), torch.tensor(2.0)
    kept, weights = 7 * 100 + 7 * 10 + 1, 2 * 10 * 100  # what leaves the sigmoid and the net, and lam
    assert bytes_of_a_call(Denoiser(), y, lam) == 4 * kept
    assert bytes_of_a_call(denoiser, y, lam) == 4 * (kept + weights)


def test_what_a_call_remembers_is_forgotten_when_counted() -> None:
    class Mark:
        pass

    marks = list[weakref.ref[Mark]]()

    def denoiser(y: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        inner, mark = (y * lam).exp(), Mark()
        assert inner.grad_fn is not None
        inner.grad_fn.metadata["mark"] = mark  # lives as long as the call can be differentiated
        marks.append(weakref.ref(mark))
        return inner.sin()

    assert bytes_of_a_call(denoiser, torch.ones(3), torch.tensor(1.0)) > 0
    assert marks[0]() is None


def test_rows_follow_levels_as_theory_says() -> None:
    table = LearnedTable(ERSDE(2, power(1.5), nodes=2.0, relative=True).tableau(grids.edm(6)))
    table.log_ratios.data += torch.linspace(-0.3, 0.3, 5, dtype=torch.float64)
    found = table.tableau()
    expected = ERSDE(2, power(1.5), nodes=2.0, relative=True).tableau(found.lams)
    for a, b in zip((found.r, found.c[:, :2], found.b), (expected.r, expected.c, expected.b), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_without_gain_a_constant_image_is_kept() -> None:
    table = LearnedTable(DPMSolverPP().tableau(grids.edm(5)), learn=[f for f in FREEDOMS if f != "gain"])
    for p in table.parameters():
        if p.requires_grad:
            p.data += 0.1
    found = table.tableau()
    torch.testing.assert_close(found.r + found.c.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.lams[0] != 80


def test_levels_are_kept_in_range() -> None:
    table = LearnedTable(DPMSolverPP().tableau(grids.edm(5)), lam_min=0.002, lam_max=80.0)
    table.log_start.data += 1
    table.log_ratios.data += 1
    table.told.data += 1
    table.project_()
    found = table.tableau()
    assert found.lams[0] <= 80 * (1 + 1e-12)
    assert found.lams[-2] >= 0.002 * (1 - 1e-12)
    assert found.calls is not None
    assert found.calls.max() <= 80


def test_a_denoiser_of_levels_is_told_one_of_them() -> None:
    levels = grids.vp_levels(100)
    table = LearnedTable(DPMSolverPP().tableau(grids.edm(5)), levels=levels)
    calls = table.tableau().calls
    assert calls is not None
    assert torch.isin(calls, levels).all()


def test_no_noise_is_left_only_when_stirred() -> None:
    table = LearnedTable(DPMSolverPP().tableau(grids.edm(4)))
    assert not table.tableau().b.any()
    table.stir_()
    assert (table.tableau().b[:-1] > 0).all()
    silent = LearnedTable(DPMSolverPP().tableau(grids.edm(4)), learn=["rows"])
    silent.stir_()
    assert not silent.tableau().b.any()


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(UserError, match="ends at noise level 0"):
        LearnedTable(DPMSolverPP().tableau(grids.edm(4, zero=False)))
    with pytest.raises(UserError, match="not colour"):
        LearnedTable(DPMSolverPP().tableau(grids.edm(4)), learn=["colour"])  # type: ignore[list-item]


@pytest.mark.parametrize(("process", "preconditioning", "prediction"), [
    (VE(), "edm", "edm"), (VP(), "vp", "eps"), (Flow(), "flow", "v"), (VE(), "ve", "score"),
])  # fmt: skip
def test_gradients_pass_through_networks_of_all_processes(process, preconditioning, prediction) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(network(num_classes=0), process, preconditioning, prediction).eval().requires_grad_(False)
    for p in denoiser.parameters():
        p.normal_(std=0.2)
    table = LearnedTable(
        default(3).solver.tableau(TableSampler(DPMSolverPP()).lams(denoiser, 3)),
        lam_min=denoiser.lam_min,
        lam_max=denoiser.lam_max,
    )
    x = table.run(denoiser, SeededNoise(range(2), (1, 4, 4)))
    x.square().mean().backward()
    for name, p in table.named_parameters():
        assert p.grad is not None
        assert p.grad.isfinite().all(), name
    assert table.told.grad is not None
    assert table.told.grad[1:].all()
