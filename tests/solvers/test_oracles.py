from functools import partial

import pytest
import torch
from torch import Tensor

from ersde_lit.solvers import DDIM, ERSDE, Heun, SeededNoise, TableSampler, grids, sample
from ersde_lit.solvers.oracles import Gaussian, LowRankMixture, Mixture, output_law, w2, w2_error

DATA = Gaussian.spectrum()


def score_of(denoiser, y: Tensor, lam: Tensor) -> Tensor:
    return (denoiser(y, lam) - y) / lam**2


def test_gaussian_denoiser_is_tweedies() -> None:
    y, lam = torch.randn(5, 16, dtype=torch.float64, requires_grad=True), torch.tensor(0.3).double()
    density = torch.distributions.Normal(DATA.mean, DATA.marginal_std(lam)).log_prob(y)
    (score,) = torch.autograd.grad(density.sum(), y)
    torch.testing.assert_close(score_of(DATA, y.detach(), lam), score, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("isotropic", [False, True])
def test_mixture_denoiser_is_tweedies(isotropic: bool) -> None:
    std = torch.tensor([[0.3, 0.1], [0.05, 0.7]])
    mixture = Mixture(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[0.5, -1.0], [-0.4, 0.2]]).double(),
        (std[:, :1] if isotropic else std).double(),
    )
    y, lam = torch.randn(50, 2, dtype=torch.float64, requires_grad=True), torch.tensor(0.4).double()
    total = (mixture.std.expand(2, 2) ** 2 + lam**2).sqrt()
    components = torch.distributions.Normal(mixture.mean, total).log_prob(y.unsqueeze(1)).sum(-1)
    (score,) = torch.autograd.grad((components + mixture.weights.log()).logsumexp(1).sum(), y)
    torch.testing.assert_close(score_of(mixture, y.detach(), lam), score, rtol=1e-9, atol=1e-9)


def test_mixture_draws_its_data() -> None:
    mixture = Mixture(
        torch.tensor([0.3, 0.7]).double(), torch.tensor([[0.5], [-1.0]]).double(), torch.tensor([[0.1], [0.2]]).double()
    )
    x = mixture.draw(100_000, torch.Generator().manual_seed(0))
    assert x.shape == (100_000, 1)
    assert x.mean().item() == pytest.approx(0.3 * 0.5 - 0.7, abs=0.01)
    assert (x > 0).double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert x[x > 0].std().item() == pytest.approx(0.1, rel=0.02)
    assert x[x < 0].std().item() == pytest.approx(0.2, rel=0.02)


def test_law_of_ancestral_sampling_by_its_recursion() -> None:
    tableau = DDIM(1.0).tableau(grids.edm(7))
    gain, offset, variance = torch.ones(16).double(), DATA.mean * 0, DATA.marginal_std(tableau.lams[0]) ** 2
    mean = DATA.mean
    for lam, r, c, b in zip(tableau.lams[:-1], tableau.r, tableau.c[:, 0], tableau.b, strict=True):
        gain = DATA.std**2 / (DATA.std**2 + lam**2)
        offset = (1 - gain) * DATA.mean
        mean, variance = (r + c * gain) * mean + c * offset, (r + c * gain) ** 2 * variance + b**2
    law = output_law(
        lambda y, noise: sample(DATA, tableau, y, noise=noise), DATA.mean, DATA.marginal_std(tableau.lams[0]), 7
    )
    torch.testing.assert_close(law, (mean, variance.sqrt()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "sampler", [TableSampler(ERSDE(3, "sde", corrector=3)), Heun(churn=10.0)], ids=["table", "two calls"]
)
def test_law_of_any_sampler_by_simulation(sampler) -> None:
    zero = torch.zeros(16, dtype=torch.float64)
    mean, std = output_law(lambda y, noise: sampler(DATA, noise, 9), zero, zero, 9)
    x = sampler(DATA, SeededNoise(range(40_000), (16,), dtype=torch.float64), 9)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.std(0) / std, torch.ones(16).double(), rtol=0, atol=0.02)


def test_w2() -> None:
    one, zero = torch.ones(4).double(), torch.zeros(4).double()
    assert w2(zero, one, zero, one) == 0
    assert w2(zero, one, one, 2 * one) == pytest.approx(8**0.5)


def test_error_vanishes_as_steps_do() -> None:
    errors = [w2_error(DATA, ERSDE(3, corrector=3).tableau(grids.edm(n, zero=False))) for n in (20, 80, 320)]
    assert errors[0] > 16 * errors[1] > 256 * errors[2]


def test_a_last_x0_is_the_mean_of_what_it_could_be() -> None:
    """So its law keeps an error, of lam_min's size, however many steps lead there."""
    lams = grids.edm(400)
    y_std, lam = DATA.marginal_std(lams[-2]), lams[-2]
    expected = w2(DATA.mean, DATA.std**2 / (DATA.std**2 + lam**2) * y_std, DATA.mean, DATA.std)
    assert w2_error(DATA, ERSDE(3, corrector=3).tableau(lams)) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (ERSDE(3, paper=True), [0.52, 0.33, 0.21, 0.037, 4.6e-3]),
        (ERSDE(3), [0.50, 0.30, 0.17, 0.013, 3.9e-4]),
        (ERSDE(3, corrector=3), [0.46, 0.23, 0.090, 0.0069, 4.4e-4]),
        (ERSDE(2, corrector=2, nodes=0.5), [0.23, 0.11, 0.072, 0.018, 9.0e-4]),
    ],
    ids=["published", "exact", "corrected", "asinh nodes"],
)
def test_known_errors(solver: ERSDE, expected: list[float]) -> None:
    """Found by another implementation of the formulas."""
    measured = [w2_error(DATA, solver.tableau(grids.edm(n))) for n in (6, 8, 10, 20, 50)]
    assert measured == pytest.approx(expected, rel=0.05)


def low_rank_mixture() -> LowRankMixture:
    generator = torch.Generator().manual_seed(0)
    normal, uniform = (partial(f, dtype=torch.float64, generator=generator) for f in (torch.randn, torch.rand))
    return LowRankMixture(
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
        normal(3, 6),
        torch.linalg.qr(normal(3, 6, 2))[0],
        uniform(3, 2) + 0.5,
        torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64),
    )


def covariances(data: LowRankMixture) -> Tensor:
    identity = torch.eye(6, dtype=torch.float64)
    along = data.basis @ (data.variance - data.rest.unsqueeze(1)).diag_embed() @ data.basis.mT
    return along + data.rest.view(-1, 1, 1) * identity


@pytest.mark.parametrize("lam", [1e-3, 0.05, 0.7, 80.0])
def test_low_rank_mixture_is_the_posterior_mean_by_brute_force(lam: float) -> None:
    data, identity = low_rank_mixture(), torch.eye(6, dtype=torch.float64)
    noise = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = data.draw(40, torch.Generator().manual_seed(2)) + lam * noise
    clean = covariances(data)
    noisy = clean + lam**2 * identity
    log_density = torch.distributions.MultivariateNormal(data.mean, noisy).log_prob(y.unsqueeze(1))
    share = (log_density + data.weights.log()).softmax(1)
    gain = clean @ torch.linalg.inv(noisy)
    means = data.mean + torch.einsum("kij,bkj->bki", gain, y.unsqueeze(1) - data.mean)
    expected = (share.unsqueeze(-1) * means).sum(1)

    level = torch.tensor(lam, dtype=torch.float64)
    torch.testing.assert_close(data(y.view(40, 1, 2, 3), level).view(40, 6), expected, rtol=1e-9, atol=1e-9)
    single = data.to(torch.float32)(y.float(), level.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-4)


def test_low_rank_mixture_draws_its_data() -> None:
    data = low_rank_mixture()
    x = data.draw(200_000, torch.Generator().manual_seed(0))
    mean = data.weights @ data.mean
    offset = data.mean - mean
    expected = torch.einsum("k,kij->ij", data.weights, covariances(data) + torch.einsum("ki,kj->kij", offset, offset))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0, atol=0.02)
