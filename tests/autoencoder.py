"""A small autoencoder of latents with 4 channels, whose decoded values lie about [0, 1], in a folder of diffusers."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ersde_lit.denoisers import Latents

LATENTS = Latents((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28))


def autoencoder(folder: Path | str, **changes) -> AutoencoderKL:
    """Saved to `folder`; images have twice the latents' height and width."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    made = AutoencoderKL(**{**blocks, **sizes, **changes}).eval().requires_grad_(False)
    made.decoder.conv_out.bias += 0.5
    made.save_pretrained(folder)
    return made


def decoded(autoencoder: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """uint8 images of samples, as EDM2 says: the inverse of its scaling, and no factor 0.18215."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (LATENTS.mean, LATENTS.std))
    return autoencoder.decode(x / 0.5 * std + mean).sample.clip(0, 1).mul(255).floor().byte()
