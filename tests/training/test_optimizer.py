import pytest

from ersde_lit.training import AdamW


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = AdamW(warmup=1000, decay=0.25)
    assert recipe.factor(0, 0.0) == 0
    assert recipe.factor(500, 0.1) == pytest.approx(0.5)
    assert recipe.factor(5000, 0.5) == recipe.factor(5000, 0.75) == 1
    assert recipe.factor(5000, 0.875) == pytest.approx(0.5)
    assert recipe.factor(9000, 1.0) == 0 == recipe.factor(9000, 1.1)


def test_neither_is_needed() -> None:
    assert AdamW().factor(0, 0.0) == AdamW().factor(10**9, 1.0) == 1


@pytest.mark.parametrize("settings", [{"lr": 0}, {"warmup": -1}, {"decay": 1.5}])
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="AdamW needs"):
        AdamW(**settings)
