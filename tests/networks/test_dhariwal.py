import pytest
import torch

from ersde_lit.networks import DhariwalUNet

ARGUMENTS = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 100, "augment_dim": 9,
             "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}  # fmt: skip
ZERO = ("conv1.", "proj.", "out_conv.", "map_augment.")


def test_starts_with_the_published_weights() -> None:
    torch.manual_seed(0)
    fan_in = 1
    for name, parameter in DhariwalUNet(**ARGUMENTS).named_parameters():
        if "norm" in name:
            assert (parameter == name.endswith("weight")).all(), name
        elif any(part in name for part in ZERO):
            assert not parameter.any(), name
        elif name == "map_label.weight":
            assert parameter.std().item() == pytest.approx(1, rel=0.05)
        else:  # uniform within 1 / sqrt(fan_in), the bias, which follows its weight, too
            fan_in = parameter[0].numel() if parameter.ndim > 1 else fan_in
            assert 0.9 * fan_in**-0.5 < parameter.abs().max() <= fan_in**-0.5, name


def test_starts_at_zero() -> None:
    net = DhariwalUNet(**ARGUMENTS)
    assert not net(torch.randn(2, 3, 8, 8), torch.randn(2), torch.tensor([0, 1]), torch.randn(2, 9)).any()


def test_heads_are_64_wide_and_narrower_blocks_have_no_attention() -> None:
    with torch.device("meta"):
        wide, narrow = DhariwalUNet(**ARGUMENTS), DhariwalUNet(**{**ARGUMENTS, "model_channels": 32})
    assert [block.heads for block in wide.dec.values()] == [2, 0, 2, 2, 0, 0, 0]
    assert [block.heads for block in narrow.dec.values()] == [1, 0, 1, 1, 0, 0, 0]


def test_heads_can_be_told_and_widths_be_fractions() -> None:
    with torch.device("meta"):
        four = DhariwalUNet(**ARGUMENTS, num_heads=4)
        wide = DhariwalUNet(**ARGUMENTS, channels_per_head=128)
        half = DhariwalUNet(**{**ARGUMENTS, "channel_mult": [0.5, 1]})
    assert [block.heads for block in four.dec.values()] == [4, 0, 4, 4, 0, 0, 0]
    assert [block.heads for block in wide.dec.values()] == [1, 0, 1, 1, 0, 0, 0]
    assert half.out_conv.in_channels == 32
    assert half.map_layer0.in_features == 64


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 0}, "num_heads must be positive, got 0"),
        ({"channels_per_head": 0}, "channels_per_head must be positive, got 0"),
        ({"num_heads": 5}, "do not divide among 5 attention heads"),
    ],
)
def test_impossible_heads_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DhariwalUNet(**ARGUMENTS, **wrong)
