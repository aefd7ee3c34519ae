import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Pictures, network, trainer
from torch import nn

from ersde_lit.networks import SongUNet
from ersde_lit.networks.unet import positional
from ersde_lit.training import EMA, AdamWConfig, AtomicCheckpointIO, DiffusionModule, RollingCheckpoint, load


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


@pytest.mark.parametrize(
    "settings", [{"half_life": -1}, {"ramp_up": -0.1}, {"half_life": math.nan}, {"ramp_up": math.nan}]
)
def test_negative_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        EMA(**settings)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_averages_are_float32_whatever_is_trained_in(precision: str, tmp_path) -> None:
    """A step's share here, 4e-4, is below what bfloat16 resolves."""
    module = DiffusionModule(network(), optimizer=AdamWConfig(1e-3), ema=EMA(half_life=14_000, ramp_up=0))
    shadow = [weight.clone() for weight in module.ema_denoiser.parameters()]
    share, step = 1 - module.ema.decay(8, 0), module.optimizer_step

    def followed(*args: Any) -> None:
        step(*args)
        for kept, new in zip(shadow, module.denoiser.parameters(), strict=True):
            kept.lerp_(new.detach().float(), share)

    module.optimizer_step = followed  # type: ignore[method-assign]
    options: dict[str, Any] = {"precision": precision, "plugins": [AtomicCheckpointIO()], "enable_checkpointing": True}
    runner = trainer(tmp_path, max_epochs=4, callbacks=[RollingCheckpoint()], **options)
    runner.fit(module, datamodule=Pictures(8))
    assert module.dtype == next(module.denoiser.parameters()).dtype != torch.float32
    averages = [*module.ema_denoiser.parameters()]
    torch.testing.assert_close(averages, shadow, rtol=1e-6, atol=1e-9)

    twin = load(last := tmp_path / "checkpoints" / "last.ckpt")
    torch.testing.assert_close([*twin.ema_denoiser.parameters()], averages, rtol=0, atol=0)
    (made, *_) = runner.predict(module, datamodule=Pictures(8))
    torch.testing.assert_close(made, twin.sample(range(8), torch.arange(8) % 3), rtol=0, atol=1e-5)
    (loss,) = runner.validate(module, datamodule=Pictures(8), verbose=False)
    (of_twin,) = trainer(tmp_path).validate(twin, datamodule=Pictures(8), verbose=False)
    assert loss["val/loss"] == pytest.approx(of_twin["val/loss"], rel=1e-2)  # images in half precision

    resumed = DiffusionModule(network(), ema=module.ema)
    trainer(tmp_path, max_epochs=4, **options).fit(resumed, datamodule=Pictures(8), ckpt_path=last)
    torch.testing.assert_close([*resumed.ema_denoiser.parameters()], averages, rtol=0, atol=0)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda module: module.to("cpu", torch.half)])
def test_a_cast_leaves_averages_as_they_are(cast: Callable) -> None:
    settings = {"model_channels": 8, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}
    module = DiffusionModule(SongUNet(4, 1, 1, embedding_type="fourier", **settings))
    before = {name: value.clone() for name, value in module.ema_denoiser.state_dict().items()}
    assert any("freqs" in name for name in before)
    cast(module)
    assert next(module.denoiser.parameters()).itemsize == 2
    torch.testing.assert_close(module.ema_denoiser.state_dict(), before, rtol=0, atol=0)
    assert {value.dtype for value in module.double().state_dict().values()} == {torch.float64}


def test_averages_of_a_network_made_in_half_precision_are_float32() -> None:
    module = DiffusionModule(network().bfloat16())
    assert {value.dtype for value in module.ema_denoiser.parameters()} == {torch.float32}


def test_noise_levels_look_the_same_whatever_the_default_precision() -> None:
    """Lightning changes it in the steps of "bf16-true"."""
    expected = positional(torch.linspace(-2, 2, 5), 32)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(positional(torch.linspace(-2, 2, 5, dtype=torch.float32), 32), expected)
    finally:
        torch.set_default_dtype(torch.float32)
