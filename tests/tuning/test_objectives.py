import pytest
import torch
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.metrics import Features, Inception
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import ERSDE, SeededNoise, TableSampler
from ersde_lit.solvers.oracles import Gaussian
from ersde_lit.tuning import (
    EnergyDistance,
    ImageFeatures,
    KernelDistance,
    Problem,
    SetDistance,
    SumOfDistances,
    Teacher,
)

NOISE = SeededNoise([0], (1,))


def draws(n: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("distance", [KernelDistance, EnergyDistance])
def test_equal_laws_are_at_distance_0_without_bias(distance: type[SetDistance]) -> None:
    objective = distance(lambda x: x, draws(2000))
    values = torch.stack([objective(draws(20, seed=k), NOISE, None) for k in range(1, 401)])
    assert abs(values.mean()) < 4 * values.std() / 20  # of 20 draws the bias, were there one, is 20 times that
    biased = torch.stack([objective(draws(20, 0.5, seed=k), NOISE, None) for k in range(1, 401)])
    assert biased.mean() > 10 * values.mean().abs()


@pytest.mark.parametrize(("distance", "kernel"), [
    (KernelDistance, lambda a, b: -((1 + a @ b / 3) ** 3)),
    (EnergyDistance, lambda a, b: (a - b).norm()),
])  # fmt: skip
def test_it_is_the_mean_over_pairs(distance: type[SetDistance], kernel) -> None:
    bank, x = draws(30), draws(7, 0.3, 1)
    objective = distance(lambda x: x, bank)
    scale = (bank - bank.mean(0)).square().mean().sqrt()
    a, b = (x - bank.mean(0)) / scale, (bank - bank.mean(0)) / scale

    def mean(p: Tensor, q: Tensor, same: bool) -> Tensor:
        pairs = [kernel(u, v) for i, u in enumerate(p) for j, v in enumerate(q) if not (same and i == j)]
        return torch.stack(pairs).mean()

    expected = 2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)
    torch.testing.assert_close(objective(x, NOISE, None), expected, rtol=1e-4, atol=1e-4)


def test_one_sample_is_no_set() -> None:
    distance = EnergyDistance(lambda x: x, torch.randn(10, 3))
    with pytest.raises(ValueError, match="2 samples or more"):
        distance(torch.randn(1, 3), None, None)


def test_a_bank_is_features() -> None:
    with pytest.raises(UserError, match=r"\[M, F\]"):
        EnergyDistance(lambda x: x, torch.zeros(4))


class Mean(Features):
    num_features = 1

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 2, 3)).unsqueeze(1)


def test_image_features_are_those_of_stored_images_with_a_gradient() -> None:
    x = torch.linspace(-1.2, 1.2, 48).view(1, 3, 4, 4).requires_grad_()
    features = ImageFeatures(Mean())
    found = features(x)
    torch.testing.assert_close(found, Mean()(quantise(x.detach())))
    torch.testing.assert_close(features(x.detach()), found.detach())
    (gradient,) = torch.autograd.grad(found.sum(), x)
    inside = (x.abs() < 0.99).float()
    torch.testing.assert_close(gradient * inside, inside * 127.5 / 48)
    assert not gradient[x.abs() > 1.01].any()


def test_a_sum_sees_what_its_first_features_do_not_in_their_unit() -> None:
    real, made = (torch.rand(2, 200, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1).unbind()
    made = made / 2 + made.mean((1, 2, 3), keepdim=True) / 2  # the means of real images, of half the contrast
    bytes_ = quantise(real)
    means, pixels = ImageFeatures(Mean()), ImageFeatures(nn.Flatten())
    first, second = EnergyDistance(means, Mean()(bytes_)), EnergyDistance(pixels, bytes_.flatten(1).float())
    seen = second(made, NOISE, None) * first.within / second.within
    assert abs(first(made, NOISE, None)) < 0.1 * seen
    both = SumOfDistances(first, second)(made, NOISE, None)
    torch.testing.assert_close(both, first(made, NOISE, None) + seen)


def test_inception_says_that_it_has_no_gradient() -> None:
    inception = Inception.__new__(Inception)
    torch.nn.Module.__init__(inception)
    with pytest.raises(UserError, match="Inception gives no gradients"):
        ImageFeatures(inception)(torch.zeros(1, 3, 4, 4, requires_grad=True))


def test_a_teacher_is_at_distance_0_from_itself() -> None:
    data = Gaussian.spectrum(4)
    sampler = TableSampler(ERSDE(2, "ode"))
    objective = Teacher(data, sampler, 20)
    problem = Problem(data, (4,), objective)
    noise, _ = problem.draw(range(8))
    assert objective(sampler(data, noise, 20), noise, None) == 0
    few, more = (problem.scores(sampler.solver.tableau(sampler.grid(n)), range(64)).mean() for n in (5, 10))
    assert few > 2 * more > 0
