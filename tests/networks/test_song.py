import math

import pytest
import torch

from ersde_lit.networks import SongUNet

ARGUMENTS = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "label_dim": 10, "augment_dim": 9,
             "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8],
             "embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "skip"}  # fmt: skip


def test_starts_with_the_published_xavier_weights() -> None:
    torch.manual_seed(0)
    for name, parameter in SongUNet(**ARGUMENTS).named_parameters():
        if parameter.ndim == 1:
            assert (parameter == float("norm" in name and name.endswith("weight"))).all(), name
            continue
        gain = 1e-5 if any(part in name for part in ("conv1", "proj", "aux_conv")) else 1.0
        gain = math.sqrt(0.2) if "qkv" in name else gain
        bound = gain * math.sqrt(6 / (parameter[0].numel() + parameter[:, 0].numel()))
        assert 0.97 * bound < parameter.abs().max() <= bound * (1 + 1e-6), name  # of 576 draws or more
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_the_random_frequencies_have_the_published_spread() -> None:
    torch.manual_seed(0)
    freqs = SongUNet(**{**ARGUMENTS, "channel_mult_noise": 32}).map_noise.freqs
    assert freqs.std().item() == pytest.approx(16, rel=0.1)


def test_starts_near_zero() -> None:
    net = SongUNet(**ARGUMENTS).eval()
    assert net(torch.randn(2, 3, 16, 16), torch.randn(2)).abs().max() < 1e-3
