"""Restoration is tested on two problems whose denoisers are exact: Gaussian images under smooth fields, and +-1."""

from functools import partial

import pytest
import torch
from torch import Tensor

from ersde_lit.denoisers import BiasField, FieldNoise, NoiseLaw, PairNoise, White
from ersde_lit.sampling.restoration import RESTORER, restoration_table, restore
from ersde_lit.solvers import (
    DDIM,
    ERSDE,
    Default,
    DPMSolverPP,
    Heun,
    NFECounter,
    SDEDPMSolverPP,
    SeededNoise,
    TableSampler,
    UniPC,
    grids,
    sample,
)
from ersde_lit.solvers.tableau import Solver


class Problem:
    """What a denoiser of a noise law has, from level 1 down to .05."""

    image_shape, num_classes, lam_min, lam_max = (1, 4, 5), 0, 0.05, 1.0

    def __init__(self, noise: NoiseLaw) -> None:
        self.noise = noise


class GaussianImages(Problem):
    """Images N(m, C) under y = x0 + lam N, N = N(mu, S) of a FieldNoise, with E[x0 | y] as linear algebra has it."""

    def __init__(self, noise: FieldNoise) -> None:
        super().__init__(noise)
        generator = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=generator)).Q
        self.root = turn * torch.linspace(0.3, 1, 20, dtype=torch.float64)  # T, with C = T T^T
        self.m = torch.randn(20, dtype=torch.float64, generator=generator) / 3
        fields = noise.basis(4, 5).flatten(1)
        self.C, self.S = self.root @ self.root.T, fields.T @ fields / (noise.eta + 1) ** 2
        self.mu = fields.sum(0) * noise.eta / (noise.eta + 1)

    def mean(self, lam: float | Tensor) -> Tensor:
        return self.m + lam * self.mu

    def cov(self, lam: float | Tensor) -> Tensor:
        return self.C + lam**2 * self.S

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        gain = self.C @ torch.linalg.inv(self.cov(lam))
        return (self.m + (y.flatten(1) - self.mean(lam)) @ gain.T).view_as(y)

    def flow(self, y: Tensor, start: float, end: float | Tensor) -> Tensor:
        """Where the noise-free path from y at level `start` is at level `end`, exactly."""
        inverse = torch.linalg.inv(self.root)
        s, u = torch.linalg.eigh(inverse @ self.S @ inverse.T)
        scale = ((1 + end**2 * s) / (1 + start**2 * s)).sqrt()
        path = self.root @ (u * scale) @ u.T @ inverse
        return (self.mean(end) + (y.flatten(1) - self.mean(start)) @ path.T).view_as(y)

    def start(self, n: int) -> Tensor:
        """y at level 1, by the definition of y."""
        e = torch.randn(n, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x0 = (self.m + e @ self.root.T).view(n, 1, 4, 5)
        return x0 + self.noise.draw(range(n), x0)


def sampler(solver: Solver) -> TableSampler:
    return TableSampler(solver, partial(grids.log_uniform, lam_max=1.0, lam_min=0.05, zero=False))


# Gaussian images


@pytest.mark.parametrize("eta", [0.0, 1.5])
def test_the_flow_is_the_one_of_the_mean_velocity(eta: float) -> None:
    problem, end = GaussianImages(FieldNoise(std=1.0, eta=eta)), 0.05
    y = problem.start(4)
    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    at, slope = torch.autograd.functional.jvp(lambda t: problem.flow(y, 1.0, t), lam, torch.ones_like(lam))
    torch.testing.assert_close(slope, (at - problem(at, lam)) / lam)
    y = problem.start(40_000)
    end_cov = problem.flow(y, 1.0, end).flatten(1).T.cov()
    torch.testing.assert_close(end_cov, problem.cov(end), rtol=0, atol=0.03)


@pytest.mark.parametrize("eta", [0.0, 1.5])
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (DDIM(), 1),
        (ERSDE(1, "ode"), 1),
        (ERSDE(2, "ode"), 2),
        (DPMSolverPP(), 2),
        (UniPC(), 2),
        (ERSDE(3, "ode", corrector=3), 3),
    ],
    ids=str,
)
def test_tables_without_noise_keep_their_order(solver: Solver, order: int, eta: float) -> None:
    problem = GaussianImages(FieldNoise(std=1.0, eta=eta))
    y = problem.start(8)
    exact = problem.flow(y, 1.0, 0.05)
    counts = torch.tensor([64, 128, 256, 512], dtype=torch.float64)
    errors = torch.stack([(restore(problem, sampler(solver), y, int(n)) - exact).norm() for n in counts])
    x = counts.log() - counts.log().mean()
    slope = -(x @ errors.log() / (x @ x)).item()
    assert slope == pytest.approx(order, abs=0.15)


RUNS = 20_000


def z_scores(problem: GaussianImages, out: Tensor) -> tuple[float, float]:
    """The largest errors of mean and covariance of images at level .05, in standard errors, over all directions."""
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(problem.cov(0.05)), (out.flatten(1) - problem.mean(0.05)).T, upper=False
    )
    mean = white.mean(1) * len(out) ** 0.5
    spread = (white.cov() - torch.eye(20)) * (len(out) / (1 + torch.eye(20))).sqrt()
    return mean.abs().max().item(), spread.abs().max().item()


@pytest.mark.parametrize("eta", [0.0, 1.5])
@pytest.mark.parametrize("solver", [ERSDE(2, "sde"), ERSDE(3, "er_sde_5", corrector=3), SDEDPMSolverPP()], ids=str)
def test_tables_with_noise_sample_the_exact_law(solver: Solver, eta: float) -> None:
    problem = GaussianImages(FieldNoise(std=1.0, eta=eta))
    mean, spread = z_scores(problem, restore(problem, sampler(solver), problem.start(RUNS), 60))
    assert mean < 4
    assert spread < 4.5


def test_that_needs_noise_of_the_law_and_its_mean() -> None:
    problem = GaussianImages(FieldNoise(std=1.0, eta=1.5))
    y, law = problem.start(RUNS), problem.noise
    table = restoration_table(problem, sampler(ERSDE(2, "sde")), 60)
    noise = law.steps(range(RUNS), y)
    mean, spread = z_scores(problem, sample(problem, table, y, noise=noise))
    assert mean > 20
    white = SeededNoise(range(RUNS), y.shape[1:], dtype=y.dtype)
    mean, spread = z_scores(problem, sample(problem, table, y, noise=white, mean=law.mean(y)))
    assert spread > 20


# Two points: x0 = +-1 with probability 1/2 each, of which +1 and -1 may have noise of their own


class Normal(NoiseLaw):
    """Normal noise of any mean, the same for all x0."""

    def __init__(self, mu: float) -> None:
        self.mu = torch.tensor(mu, dtype=torch.float64)

    def steps(self, seeds, like: Tensor) -> SeededNoise:
        return SeededNoise(seeds, like.shape[1:], dtype=like.dtype)

    def mean(self, like: Tensor) -> Tensor:
        return self.mu


class TwoPoints(Problem):
    """Noise N(mu, scales^2), the first scale that of x0 = +1; y is at level 1 in stratified draws."""

    image_shape, lam_min = (1, 1, 1), 1e-3

    def __init__(self, law: NoiseLaw, mu: float, scales: tuple[float, float]) -> None:
        super().__init__(law)
        self.mu, self.scales = mu, scales

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        up, down = (
            -(((y - x0 - lam * self.mu) / (lam * s)) ** 2) / 2 - torch.as_tensor(s).log()
            for x0, s in zip((1, -1), self.scales, strict=True)
        )
        return ((up - down) / 2).tanh()

    def start(self, n: int) -> Tensor:
        normal = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
        up, down = (x0 + self.mu + s * normal for x0, s in zip((1, -1), self.scales, strict=True))
        return torch.cat([up, down]).view(-1, 1, 1, 1)


def w1(out: Tensor) -> float:
    """Wasserstein distance from images to +-1, half each."""
    exact = torch.ones(len(out), dtype=out.dtype)
    exact[: len(out) // 2] = -1
    return (out.flatten().sort().values - exact).abs().mean().item()


PLAIN, SHIFTED = TwoPoints(Normal(0.0), 0.0, (1.0, 1.0)), TwoPoints(Normal(1.5), 1.5, (1.0, 1.0))
SCALED = TwoPoints(NoiseLaw(), 0.0, (0.5, 2.0))
TO_ZERO = partial(grids.log_uniform, lam_max=1.0, lam_min=1e-3)


@pytest.mark.parametrize("problem", [PLAIN, SHIFTED, SCALED], ids=["plain", "shifted", "scaled"])
@pytest.mark.parametrize("solver", [DDIM(), ERSDE(2, "ode"), UniPC()], ids=str)
def test_noise_free_tables_are_right_for_every_law(problem: TwoPoints, solver: Solver) -> None:
    out = restore(problem, TableSampler(solver, TO_ZERO), problem.start(5000), 200)
    assert w1(out) < 0.01


@pytest.mark.parametrize("solver", [ERSDE(1, "sde"), ERSDE(2, "sde"), ERSDE(3, "sde", corrector=3)], ids=str)
def test_noise_is_right_where_the_law_is_one_gaussian(solver: Solver) -> None:
    noisy = TableSampler(solver, TO_ZERO)
    for problem in (PLAIN, SHIFTED):
        assert w1(restore(problem, noisy, problem.start(5000), 200)) < 0.02

    def forced(problem: TwoPoints) -> float:
        """Error of noise as if the law were standard normal."""
        y = problem.start(5000)
        steps = Normal(0.0).steps(range(len(y)), y)
        return w1(sample(problem, noisy.table(problem, 200), y, noise=steps))

    assert forced(SCALED) > 0.2
    assert forced(SHIFTED) > 0.2
    with pytest.raises(ValueError, match="depends on x0"):
        restore(SCALED, noisy, SCALED.start(2), 200)


# Any problem


@pytest.mark.parametrize(
    ("noise", "chosen", "message"),
    [
        (White(), sampler(DDIM()), "removes white noise, so it samples images and restores none: take `sample`"),
        (FieldNoise(), Heun(), "Heun has no table, which restoration needs: take er_sde, ddim, unipc2"),
        (FieldNoise(), Default(), "Default has no table"),
        (FieldNoise(), TableSampler(DDIM(), add_mean=True), "add_mean is for starts of pure noise"),
        (
            FieldNoise(),
            TableSampler(DDIM(), partial(grids.edm, lam_max=0.5, lam_min=0.1)),
            "the grid starts at 0.5, and a degraded image is at 1: leave sigma_max out",
        ),
        (BiasField(), sampler(ERSDE(2, "sde")), "the law of BiasField depends on x0, so samplers with noise are wrong"),
        (PairNoise(), sampler(DDIM(1.0)), "the law of PairNoise depends on x0, so samplers with noise are wrong"),
    ],
)
def test_what_restores_nothing_is_refused_in_one_line(noise: NoiseLaw, chosen, message: str) -> None:
    for act in (partial(restoration_table, nfe=5), lambda *of: restore(*of, torch.zeros(1, 1, 4, 5), 5)):
        with pytest.raises(ValueError, match=message) as refusal:
            act(Problem(noise), chosen)
        assert "\n" not in str(refusal.value)


def test_restoration_goes_from_the_encoded_degraded_image_to_a_decoded_clean_one() -> None:
    law = BiasField()
    clean, degraded = (2 * torch.rand(2, 3, 1, 9, 12, dtype=torch.float64) - 1).unbind()

    class Knows(Problem):
        def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
            return law.encode(clean)

    states, counter = [], NFECounter(Knows(law))
    out = restore(counter, RESTORER, degraded, 5, callback=lambda *state: states.append(state))
    torch.testing.assert_close(out, clean)
    assert counter.nfe == 5
    _, lam, y, _ = states[0]
    assert lam == 1
    assert torch.equal(y, law.encode(degraded))


def test_an_image_is_restored_alike_in_every_batch() -> None:
    problem = GaussianImages(FieldNoise(eta=1.5))
    noisy, y = sampler(ERSDE(2, "sde")), problem.start(3)
    together = restore(problem, noisy, y, 6, seeds=[5, 9, 2])
    torch.testing.assert_close(restore(problem, noisy, y[1:], 6, seeds=[9, 2]), together[1:], rtol=1e-12, atol=1e-12)
    assert torch.equal(restore(problem, noisy, y, 6), restore(problem, noisy, y, 6, seeds=range(3)))
    assert not torch.allclose(restore(problem, noisy, y, 6), together)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 4, 5, dtype=torch.uint8), torch.zeros(1, 4, 5), torch.zeros(2, 3, 4, 5)],
    ids=["bytes", "one image", "colour"],
)
def test_images_that_are_no_floats_of_its_channels_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images to restore are floats in \[-1, 1\], \[B, 1, H, W\], not torch"):
        restore(GaussianImages(FieldNoise(1, 0)), RESTORER, images, 3)
