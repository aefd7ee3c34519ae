import json
from pathlib import Path

import pytest
import torch
from autoencoder import LATENTS, autoencoder, decoded

from ersde_lit.errors import UserError
from ersde_lit.sampling.decoder import AT_ONCE, FILES, Decoder


def test_images_are_those_decoded_by_hand(tmp_path) -> None:
    made = autoencoder(tmp_path)
    decoder = Decoder(tmp_path, LATENTS, (4, 4, 4))
    x = torch.randn(AT_ONCE + 1, 4, 4, 4)
    images, expected = decoder(x), decoded(made, x)
    assert decoder.image_shape == images.shape[1:] == (3, 8, 8)
    assert images.dtype == torch.uint8
    assert (images.int() - expected.int()).abs().max() <= 1  # rounded to a neighbour, where the batch is another
    assert (images != expected).float().mean() < 0.01
    assert len(images.unique()) > 50
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder(x), images)


def test_samples_that_are_not_finite_are_told(tmp_path) -> None:
    autoencoder(tmp_path)
    with pytest.raises(FloatingPointError, match="NaN"):
        Decoder(tmp_path, LATENTS, (4, 4, 4))(torch.full((1, 4, 4, 4), float("nan")))


def cut(folder: Path) -> None:
    (folder / FILES[1]).write_bytes((folder / FILES[1]).read_bytes()[:1000])


def change(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / FILES[1]).unlink(), f"holds no {FILES[1]}: give the folder of"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json: give the folder of"),
        (cut, "cannot be read as an AutoencoderKL of diffusers"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as an AutoencoderKL"),
        (lambda folder: change(folder, block_out_channels=[16, 16]), "cannot be read as an AutoencoderKL"),
        (lambda folder: change(folder, layers_per_block=2), "its weights are not those of its config.json"),
        (lambda folder: autoencoder(folder, latent_channels=3), "decodes 3 channels, and the model has 4"),
    ],
)
def test_folders_that_are_missing_or_damaged(tmp_path, capfd, spoil, message: str) -> None:
    autoencoder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Decoder(tmp_path, LATENTS, (4, 4, 4))
    assert "\n" not in str(caught.value)
