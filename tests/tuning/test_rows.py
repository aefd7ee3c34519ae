import pytest
import torch

from ersde_lit.errors import UserError
from ersde_lit.solvers import ERSDE, SeededNoise, grids, power, sample
from ersde_lit.solvers.oracles import Mixture
from ersde_lit.solvers.registry import solver
from ersde_lit.tuning.rows import NODES, full_history, theory


def mixture() -> Mixture:
    mean = torch.tensor([[0.5, -0.2, 0.1], [-0.4, 0.3, 0.9]], dtype=torch.float64)
    return Mixture(torch.tensor([0.3, 0.7], dtype=torch.float64), mean, torch.full((2, 1), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_theory_is_ersde_of_order_2(n: int, p: float) -> None:
    lams = grids.edm(n)
    expected = ERSDE(2, power(p), nodes=NODES, relative=True).tableau(lams).c
    rows = theory(lams[:-1], torch.full((n - 1,), p - 1, dtype=torch.float64))
    torch.testing.assert_close(rows[:, :2], expected[:, : n if n < 2 else 2], rtol=0, atol=1e-15)


def test_theory_has_gradients() -> None:
    logs = grids.edm(4)[:-1].log().requires_grad_()
    excess = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: theory(a.exp(), b), (logs, excess))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "sde_dpm++2m", "unipc3", "ipndm", "deis", "sa"])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_full_history_is_the_same_sampler(name: str, n: int) -> None:
    tableau = solver(name).tableau(grids.edm(n))
    noise = SeededNoise(range(20), (3,), dtype=torch.float64)
    start = tableau.lams[0] * noise.initial()
    calls: list[torch.Tensor] = []
    folded_calls: list[torch.Tensor] = []
    expected = sample(mixture(), tableau, start, noise=noise, callback=lambda i, lam, y, x0: calls.append(y.clone()))
    folded = full_history(tableau)
    found = sample(mixture(), folded, start, noise=noise, callback=lambda i, lam, y, x0: folded_calls.append(y.clone()))
    assert folded.corrector is None
    assert folded.history == "x0"
    for a, b in zip([*calls, expected], [*folded_calls, found], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(tableau.lams[0]))


def test_noise_that_comes_back_is_refused() -> None:
    tableau = solver("ipndm").tableau(grids.edm(4))
    with pytest.raises(UserError, match="noise of earlier steps"):
        full_history(tableau._replace(b=torch.tensor([0.1, 0.1, 0.1, 0.0], dtype=torch.float64)))
