from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ersde_lit.analysis.mixture import ROUNDING, fit_mixture, load_mixture, save_mixture
from ersde_lit.data import Digits
from ersde_lit.errors import UserError
from ersde_lit.solvers import SeededNoise, default
from ersde_lit.solvers.oracles import LowRankMixture, Mixture


@pytest.fixture(scope="module")
def fitted() -> LowRankMixture:
    return fit_mixture(Digits().split("train").images / 127.5 - 1, components=12, rank=8)


def test_it_has_the_moments_of_the_images(fitted: LowRankMixture) -> None:
    images = (Digits().split("train").images / 127.5 - 1).flatten(1).double()
    x = fitted.draw(50_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), images.mean(0), rtol=0, atol=0.02)
    assert x.var(0).sum().item() == pytest.approx(images.var(0).sum().item(), rel=0.02)


def test_parts_have_the_promised_shapes(fitted: LowRankMixture) -> None:
    count = len(fitted.weights)
    assert fitted.weights.sum().item() == pytest.approx(1)
    assert fitted.mean.shape == (count, 64)
    eye = torch.eye(8, dtype=torch.float64).expand(count, 8, 8)
    torch.testing.assert_close(fitted.basis.mT @ fitted.basis, eye, rtol=0, atol=1e-9)
    assert fitted.variance.shape == (count, 8)
    assert (fitted.rest >= ROUNDING).all()


def test_it_finds_the_mixture_that_the_images_are_of() -> None:
    data = Mixture(
        torch.tensor([0.25, 0.75], dtype=torch.float64),
        torch.tensor([[4.0, 0.0, 0.0], [-4.0, 0.0, 0.0]], dtype=torch.float64),
        torch.tensor([[0.1, 0.9, 0.1], [0.5, 0.2, 0.2]], dtype=torch.float64),
    )
    found = fit_mixture(data.draw(40_000, torch.Generator().manual_seed(0)), components=2, rank=1)
    order = found.mean[:, 0].argsort(descending=True)
    torch.testing.assert_close(found.weights[order], data.weights, rtol=0, atol=0.01)
    torch.testing.assert_close(found.mean[order], data.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(
        found.variance[order, 0].sqrt(), torch.tensor([0.9, 0.5], dtype=torch.float64), rtol=0.02, atol=0
    )
    torch.testing.assert_close(
        found.rest[order].sqrt(), torch.tensor([0.1, 0.2], dtype=torch.float64), rtol=0.02, atol=0
    )


def test_the_same_seed_gives_the_same(fitted: LowRankMixture) -> None:
    again = fit_mixture(Digits().split("train").images / 127.5 - 1, components=12, rank=8)
    assert torch.equal(again.mean, fitted.mean)


def test_the_default_sampler_makes_its_images(fitted: LowRankMixture) -> None:
    """In 30 calls: as near to the nearest mean as exact draws are."""
    x = default(30)(fitted.to(torch.float32), SeededNoise(range(500), (64,)), 30).double()
    exact = fitted.draw(500, torch.Generator().manual_seed(0))
    near, expected = (torch.cdist(z, fitted.mean).min(1).values.mean().item() for z in (x, exact))
    assert near == pytest.approx(expected, rel=0.03)


def test_it_is_stored_and_read(fitted: LowRankMixture, tmp_path: Path) -> None:
    save_mixture(fitted, tmp_path / "digits.safetensors")
    y = torch.randn(3, 64, dtype=torch.float64)
    lam = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(load_mixture(tmp_path / "digits.safetensors")(y, lam), fitted(y, lam))


def test_what_is_no_mixture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_mixture(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match="no \\.safetensors file"):
        load_mixture(tmp_path / "text.safetensors")
    save_file({"weights": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is no mixture: it holds weights"):
        load_mixture(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("components", "rank", "message"), [(2, 64, "rank must be"), (40, 60, "fewer components")])
def test_a_mixture_that_cannot_be_fitted_says_why(components: int, rank: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_mixture(Digits().split("train").images / 127.5 - 1, components, rank)
