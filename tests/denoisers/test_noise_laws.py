import copy
import pickle

import pytest
import torch

from ersde_lit.denoisers import BiasField, FieldNoise, NoiseLaw, PairNoise, White
from ersde_lit.solvers import SeededNoise

X0 = torch.linspace(-0.9, 0.9, 3 * 2 * 6 * 5).view(3, 2, 6, 5)
LAWS = [White(), FieldNoise(), FieldNoise(2, 0, 0.3, 4.0), BiasField(), PairNoise()]
SEEDS = [7, 3, 2**40]


def draw(law: NoiseLaw, seeds, x0: torch.Tensor = X0) -> torch.Tensor:
    return law.draw(seeds, x0, *([x0.flip(-1)] if isinstance(law, PairNoise) else []))


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_an_images_noise_is_a_function_of_its_seed_and_itself(law: NoiseLaw) -> None:
    together = draw(law, SEEDS)
    assert together.shape == X0.shape
    for k, seed in enumerate(SEEDS):
        assert torch.equal(draw(law, [seed], X0[k : k + 1])[0], together[k])
    same_image = draw(law, range(50), X0[:1].expand(50, -1, -1, -1))
    assert len(same_image.unique(dim=0)) == 50


@pytest.mark.parametrize("law", [White(), FieldNoise(eta=1.0)], ids=str)
def test_the_noise_of_each_step_is_another(law: NoiseLaw) -> None:
    steps = law.steps(SEEDS, X0)
    draws = torch.cat([draw(law, SEEDS) - (0 if law.mean(X0) is None else law.mean(X0)), steps.step(0), steps.step(1)])
    assert len(draws.unique(dim=0)) == 9
    assert torch.equal(steps.step(1)[2:], law.steps(SEEDS[2:], X0[2:]).step(1))


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_has_the_dtype_of_its_images_and_the_same_bits(law: NoiseLaw, dtype: torch.dtype) -> None:
    noise, exact = draw(law, SEEDS, X0.to(dtype)), draw(law, SEEDS, X0.to(dtype).double())
    assert noise.dtype == dtype
    tolerance = {torch.float64: 0.0, torch.float32: 2e-6, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(noise.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_mixed_precision_does_not_round_noise(law: NoiseLaw) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mixed = draw(law, SEEDS)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, draw(law, SEEDS))


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_laws_are_values(law: NoiseLaw) -> None:
    assert copy.deepcopy(law) == pickle.loads(pickle.dumps(law)) == law


def test_white_noise_is_what_models_were_trained_on_before() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16):
        noise = SeededNoise(SEEDS, X0.shape[1:], dtype=dtype)
        like = X0.to(dtype)
        assert torch.equal(White().draw(SEEDS, like), noise.initial())
        assert torch.equal(White().steps(SEEDS, like).step(3), noise.step(3))
    assert White().mean(X0) is None
    assert White().encode(X0) is White().decode(X0) is X0


@pytest.mark.parametrize("eta", [0.0, 3.0])
def test_a_pairs_noise_is_its_difference_times_one_normal_number(eta: float) -> None:
    clean, degraded = X0[:1].double().expand(20_000, -1, -1, -1), X0[1:2].double().expand(20_000, -1, -1, -1)
    share = PairNoise(eta).draw(range(20_000), clean, degraded) / (degraded - clean)
    torch.testing.assert_close(share, share[:, :1, :1, :1].expand_as(share))  # one number an image
    share = share[:, 0, 0, 0]
    assert share.mean().item() == pytest.approx(eta / (eta + 1), abs=4 / (eta + 1) / 20_000**0.5)
    assert share.std().item() == pytest.approx(1 / (eta + 1), rel=4 / 40_000**0.5)


def test_pairs_are_needed_and_their_law_must_make_sense() -> None:
    with pytest.raises(ValueError, match="PairNoise is learned from pairs: train it on"):
        PairNoise().draw(SEEDS, X0)
    for arguments in ((-1.0, 0.3), (10.0, 0.0), (float("nan"), 0.3), (float("inf"), 0.3)):
        with pytest.raises(ValueError, match="PairNoise needs eta >= 0 and std > 0"):
            PairNoise(*arguments)


@pytest.mark.parametrize("law", [BiasField(), PairNoise()], ids=str)
def test_steps_are_refused_where_noise_depends_on_the_image(law: NoiseLaw) -> None:
    with pytest.raises(ValueError, match=f"the law of {type(law).__name__} depends on x0"):
        law.steps(SEEDS, X0)
    assert law.mean(X0) is None
