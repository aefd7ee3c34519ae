"""Images of latents, by an autoencoder in a folder of diffusers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ersde_lit.denoisers.latents import Latents
from ersde_lit.errors import UserError, needs_extra
from ersde_lit.sampling.images import check_numbers
from ersde_lit.tf32 import tf32

FILES = ("config.json", "diffusion_pytorch_model.safetensors")  # in the folder
QUANTISATION = "decoded to d, uint8, floor(255 d), clipped"
AT_ONCE = 4  # images, whose activations take much more memory than the latents'


class Decoder:
    """Latents to uint8 images as EDM2 decodes them: floor(255 d), of the autoencoder's d clipped to [0, 1], in float32.

    Args:
        folder: of diffusers' `AutoencoderKL.save_pretrained`.
        latents: what the samples are.
        shape: of a sample, (C, H, W).

    Attributes:
        image_shape: of an image, (C, H, W).

    Raises:
        UserError: no such folder, one that is damaged or of another model, or diffusers is missing.
    """

    def __init__(self, folder: str | Path, latents: Latents, shape: Sequence[int]) -> None:
        self.latents = latents
        if absent := [name for name in FILES if not (Path(folder) / name).is_file()]:
            raise UserError(
                f"--decoder {folder} holds no {absent[0]}: give the folder of an AutoencoderKL of diffusers"
            )
        with needs_extra("diffusers", "--decoder"):
            from diffusers import AutoencoderKL
        try:
            self.model, found = AutoencoderKL.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        except Exception as error:  # diffusers, safetensors and torch have many ways to say so
            said = " ".join(str(error).split())[:120]
            raise UserError(f"--decoder {folder} cannot be read as an AutoencoderKL of diffusers: {said}") from None
        if unfit := [*found["missing_keys"], *found["unexpected_keys"]]:
            raise UserError(f"--decoder {folder}: its weights are not those of its config.json, as {unfit[0][:80]!r}")
        config, (channels, height, width) = self.model.config, shape
        if config.latent_channels != channels:
            raise UserError(
                f"--decoder {folder} decodes {config.latent_channels} channels, and the model has {channels}"
            )
        factor = 2 ** (len(config.block_out_channels) - 1)
        self.image_shape = (config.out_channels, factor * height, factor * width)
        self.model.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Samples [B, C, H, W] to images, uint8 [B, *image_shape], on the samples' device.

        Raises:
            NotFinite: x holds NaN.
        """
        check_numbers(x)
        self.model.to(x.device)
        raw = self.latents.raw(x.float())
        with torch.autocast(x.device.type, enabled=False), tf32():
            images = [self.model.decode(part).sample for part in raw.split(AT_ONCE)]
        return (torch.cat(images).clamp(0, 1) * 255).to(torch.uint8)
