import pytest
import torch

from ersde_lit.errors import UserError
from ersde_lit.solvers import ERSDE, NFECounter, SeededNoise, grids, sample
from ersde_lit.solvers.oracles import Mixture
from ersde_lit.tuning import Problem, plan_levels


def clusters() -> Mixture:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    return Mixture(torch.full((8,), 1 / 8, dtype=torch.float64), mean, torch.full((8, 1), 0.05, dtype=torch.float64))


def missed(lams: torch.Tensor) -> float:
    """Root mean square difference of a run on these levels to a fine one, from the same noise."""
    solver, noise = ERSDE(2, "ode", nodes=2.0, relative=True), SeededNoise(range(1000, 1200), (6,), dtype=torch.float64)
    fine = solver.tableau(grids.edm(200))
    ends = [sample(clusters(), t, float(t.lams[0]) * noise.initial()) for t in (solver.tableau(lams), fine)]
    return float((ends[0] - ends[1]).square().mean().sqrt())


def test_planned_levels_miss_less_than_fixed_grids() -> None:
    counter = NFECounter(clusters())
    plan = plan_levels(Problem(counter, (6,), lambda x, noise, labels: x.sum()), [5, 8])
    assert counter.nfe == 64 * 4  # one run, in batches of 16 seeds
    for n, lams in plan.items():
        assert len(lams) == n + 1
        assert lams[-1] == 0
        others = [grids.edm(n), grids.edm(n, rho=12.0), grids.log_uniform(n), grids.edm(n, lam_max=50.0, rho=10.0)]
        assert missed(lams) < 0.9 * min(missed(other) for other in others)


def test_few_calls_and_too_many() -> None:
    problem = Problem(clusters(), (6,), lambda x, noise, labels: x.sum())
    plan = plan_levels(problem, [1, 2, 3], fine=16)
    assert [len(plan[n]) for n in (1, 2, 3)] == [2, 3, 4]
    with pytest.raises(UserError, match="more than 16 calls"):
        plan_levels(problem, [16], fine=16)
