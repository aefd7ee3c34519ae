import pytest

from ersde_lit.networks import ClassifierEncoder, DhariwalUNet, EDM2UNet, SongUNet, UNet

SONG = {"img_resolution": 8, "in_channels": 3, "out_channels": 3}
EDM2 = {"img_resolution": 8, "img_channels": 3, "label_dim": 0}


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (UNet, {"image_shape": (1, 8, 8), "dropout": 2}, "dropout is a probability, got 2"),
        (UNet, {"image_shape": (1, 8, 8), "num_classes": -1}, "num_classes must not be negative, got -1"),
        (ClassifierEncoder, {"image_shape": (1, 8, 8), "num_classes": 3, "width": 0}, "width must be positive, got 0"),
        (SongUNet, {**SONG, "label_dropout": -0.5}, "label_dropout is a probability, got -0.5"),
        (SongUNet, {**SONG, "channel_mult_emb": 0}, "channel_mult_emb must be positive, got 0"),
        (DhariwalUNet, {**SONG, "augment_dim": -9}, "augment_dim must not be negative, got -9"),
        (EDM2UNet, {**EDM2, "channels_per_head": 0}, "channels_per_head must be positive, got 0"),
    ],
)
def test_an_argument_out_of_range_is_named(network: type, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**arguments)
