import pytest
import torch
from torch import nn

from ersde_lit.training import EMA


def test_the_influence_of_a_weight_halves_in_a_half_life() -> None:
    ema, average, current = EMA(half_life=1000, ramp_up=0), nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.ones_(average.weight)
    nn.init.zeros_(current.weight)
    for step in range(1, 11):
        ema.update(average, current, 100, 100 * step)
    assert average.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_the_ramp_up_follows_the_images_seen() -> None:
    ema = EMA(half_life=1000, ramp_up=0.05)
    assert ema.decay(100, 2000) == pytest.approx(0.5)  # half-life 100
    assert ema.decay(100, 10**9) == pytest.approx(0.5**0.1)
    assert ema.decay(100, 0) == 0.0  # nothing of the initial weights is kept


def test_batches_of_any_size_add_up() -> None:
    ema = EMA(half_life=512, ramp_up=0)
    assert ema.decay(64, 1) ** 4 == pytest.approx(ema.decay(256, 1))


def test_buffers_are_copied_also_integer_ones() -> None:
    average, current = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    current(torch.randn(4, 2, 3, 3))
    EMA().update(average, current, 1, 1)
    assert average.num_batches_tracked == 1
    assert torch.equal(average.running_mean, current.running_mean)


@pytest.mark.parametrize("settings", [{"half_life": -1}, {"ramp_up": -0.1}])
def test_negative_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        EMA(**settings)
