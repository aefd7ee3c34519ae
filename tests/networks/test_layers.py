import pytest
import torch
import torch.nn.functional as F

from ersde_lit.networks.layers import Conv2d, ConvThenDownsample, GroupNorm, Linear, Resample

X = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))


def test_the_box_filter_averages_and_repeats_pixels() -> None:
    torch.testing.assert_close(Resample("down", [1, 1])(X), F.avg_pool2d(X, 2))
    torch.testing.assert_close(Resample("up", [1, 1])(X), X.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 2, 3, 3, 2, 1]])
def test_resampling_keeps_a_constant_away_from_the_border(taps: list[int]) -> None:
    x, margin = torch.full((1, 2, 16, 16), 3.0), len(taps)
    for direction, side in (("down", 8), ("up", 32)):
        y = Resample(direction, taps)(x)
        assert y.shape == (1, 2, side, side)
        inner = y[..., margin // 2 : -margin // 2, margin // 2 : -margin // 2]
        torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_convolution_before_downsampling_is_padded_once_for_both(taps: list[int]) -> None:
    layer = ConvThenDownsample(3, 4, 3, taps)
    plane = F.pad(X, (20, 20, 20, 20))  # a plane of zeros all round, on which no layer needs padding
    blurred = F.conv2d(F.conv2d(plane, layer.weight), layer.resample_filter.expand(4, -1, -1, -1), groups=4)
    start = 20 - 1 - (len(taps) // 2 - 1)  # of the first output pixel, whose window is centred on X's first two
    expected = blurred[..., start : start + 8 : 2, start : start + 6 : 2] + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(X), expected)


@pytest.mark.parametrize("layer", [Conv2d(3, 4, 3), Conv2d(3, 4, 1, "up"), Conv2d(3, 4, 3, "down")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_compute_in_the_dtype_of_their_input(layer: Conv2d, dtype: torch.dtype) -> None:
    y = layer(X.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), layer(X), rtol=0.02, atol=0.02)
    assert layer.weight.dtype == torch.float32
    assert GroupNorm(8)(torch.randn(2, 8, 4, 4, dtype=dtype)).dtype == dtype
    assert Linear(3, 4)(torch.randn(2, 3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("channels", [3, 130])
def test_channels_that_cannot_be_normalised(channels: int) -> None:
    with pytest.raises(ValueError, match="equal normalisation groups: choose model_channels"):
        GroupNorm(channels)


@pytest.mark.parametrize("taps", [[], [1, 2, 1]])
def test_an_odd_filter_is_refused(taps: list[int]) -> None:
    with pytest.raises(ValueError, match="even number of taps"):
        Resample("up", taps)
