import math

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre

from ersde_lit.denoisers import BiasField, FieldNoise

SHAPE = (1, 5, 7)
IMAGES = torch.zeros(60_000, *SHAPE, dtype=torch.float64)


def covariance(basis: torch.Tensor) -> torch.Tensor:
    """H H^T of fields [M, H, W]."""
    return basis.flatten(1).T @ basis.flatten(1)


@pytest.mark.parametrize("law", [FieldNoise(), FieldNoise(0, 2, 0.5), FieldNoise(4, 0, 1.0, eta=2.0)], ids=str)
def test_draws_have_the_law_of_their_fields(law: FieldNoise) -> None:
    fields, basis = law.draw(range(len(IMAGES)), IMAGES).flatten(1), law.basis(*SHAPE[1:])
    exact = covariance(basis) / (law.eta + 1) ** 2
    mean = law.eta / (law.eta + 1) * basis.sum(0).flatten()
    error = 5 * (exact.diag() / len(fields)).sqrt()
    assert ((fields.mean(0) - mean).abs() <= error).all()
    spread = 5 * ((exact.diag().outer(exact.diag()) + exact**2) / len(fields)).sqrt()
    assert ((fields.T.cov() - exact).abs() <= spread).all()
    assert covariance(basis).diag().mean().sqrt().item() == pytest.approx(law.std)
    if law.eta:
        torch.testing.assert_close(law.mean(IMAGES).flatten(), mean)
    else:
        assert law.mean(IMAGES) is None


def test_steps_have_the_law_less_its_mean() -> None:
    law = FieldNoise(eta=2.0)
    steps = law.steps(range(9), IMAGES[:9])
    torch.testing.assert_close(steps.initial() + law.mean(IMAGES), law.draw(range(9), IMAGES[:9]))
    fields = law.steps(range(20_000), IMAGES[:20_000]).step(4).flatten(1)
    exact = covariance(law.basis(*SHAPE[1:])) / 9
    assert ((fields.T.cov() - exact).abs() < 0.05 * exact.diag().max()).all()
    assert (fields.mean(0).abs() < 0.04 * exact.diag().sqrt()).all()


def test_polynomials_are_numpys() -> None:
    basis = FieldNoise(5, 0, std=1.0).basis(11, 6)
    y, x = ((2 * np.arange(side) + 1) / side - 1 for side in (11, 6))
    powers = [(i, j) for i in range(6) for j in range(6) if 0 < i + j <= 5]
    assert len(basis) == len(powers)
    for field, (i, j) in zip(basis, powers, strict=True):
        expected = torch.from_numpy(np.outer(legendre.Legendre.basis(i)(y), legendre.Legendre.basis(j)(x)))
        expected /= expected.square().mean().sqrt() * math.sqrt(len(basis))
        torch.testing.assert_close(field, expected, rtol=1e-12, atol=1e-12)


def test_waves_are_orthogonal_of_equal_power_and_zero_mean() -> None:
    basis = FieldNoise(0, 2, std=1.0).basis(9, 6).flatten(1)
    assert len(basis) == 5**2 - 1  # all but the constant
    torch.testing.assert_close(basis @ basis.T, torch.eye(24).double() * 54 / 24, rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.sum(1), torch.zeros(24).double(), rtol=0, atol=1e-12)


def test_a_field_is_the_same_at_every_size_and_in_all_channels() -> None:
    law = FieldNoise(eta=1.0)
    small, large = (law.draw([3], torch.zeros(1, 2, 40 * k, 60 * k)) for k in (1, 3))
    torch.testing.assert_close(large[:, :, 1::3, 1::3], small, rtol=0, atol=2e-3)  # the middles of 3 x 3 pixels
    assert torch.equal(small[:, 0], small[:, 1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FieldNoise(0, 0), "a degree or waves of at least 1, got 0 and 0"),
        (lambda: FieldNoise(-1, 3), "a degree or waves of at least 1"),
        (lambda: FieldNoise(std=0.0), "needs std > 0 and eta >= 0"),
        (lambda: FieldNoise(eta=-1.0), "needs std > 0 and eta >= 0"),
        (lambda: FieldNoise(std=math.nan), "needs std > 0 and eta >= 0"),
        (lambda: BiasField(floor=0.0), "the floor of a BiasField is an intensity above 0, at most 1, got 0.0"),
        (lambda: FieldNoise(3, 1).basis(3, 8), "needs more than 3 pixels a side, got 3 x 8"),
        (lambda: FieldNoise(0, 2).basis(8, 4), "needs more than 4 pixels a side, got 8 x 4"),
    ],
)
def test_fields_that_cannot_be_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("law", [BiasField(), BiasField(FieldNoise(2, 0, 0.4, 1.0), floor=0.3)], ids=str)
def test_a_bias_field_multiplies_intensities(law: BiasField) -> None:
    images = 2 * torch.rand(50, 2, 6, 8, dtype=torch.float64) - 1
    images[:, :, 0] = -1  # black
    x0 = law.encode(images)
    torch.testing.assert_close(law.decode(x0), images, rtol=0, atol=1e-13)
    white = law.encode(torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(white, torch.tensor([-1.0, 1.0]))

    noise, g = law.draw(range(50), x0), law.field.draw(range(50), x0)
    v = (images + 1) / 2
    torch.testing.assert_close((law.decode(x0 + noise) + 1) / 2, v * g.exp(), rtol=1e-12, atol=1e-13)
    assert not noise[:, :, 0].any()
    assert torch.equal(law.encode(torch.tensor(-1.9)), torch.tensor(-1.0))  # blacker than black is black


def test_far_above_the_floor_the_noise_of_a_bias_is_its_field() -> None:
    law = BiasField(FieldNoise(), floor=1e-7)
    x0 = law.encode(torch.zeros(2000, 1, 6, 6, dtype=torch.float64))
    noise = law.draw(range(2000), x0)
    torch.testing.assert_close(noise, 2 / math.log(1 + 1e7) * law.field.draw(range(2000), x0), rtol=0, atol=1e-6)
    assert noise.square().mean().sqrt().item() == pytest.approx(law.std, rel=0.03)
