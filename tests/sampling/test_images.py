import pytest
import torch

from ersde_lit.sampling.images import quantise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_of_the_data_scaling(dtype):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(quantise(images.to(dtype) / 127.5 - 1), images)


def test_clips_and_keeps_shape():
    x = torch.tensor([[-1e9, -1.01, -1, 0], [1 - 1e-6, 1, 1.5, float("inf")]])
    assert quantise(x).tolist() == [[0, 0, 0, 128], [255, 255, 255, 255]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scaled_in_float32(dtype):
    x = torch.linspace(-1, 1, 300).to(dtype)
    assert torch.equal(quantise(x), quantise(x.float()))


def test_refuses_nan_and_integers():
    with pytest.raises(ValueError, match="NaN"):
        quantise(torch.tensor([0.0, float("nan")]))
    with pytest.raises(TypeError, match="uint8"):
        quantise(torch.zeros(1, dtype=torch.uint8))
