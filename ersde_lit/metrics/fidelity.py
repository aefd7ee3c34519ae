"""Fidelity of restored images to the clean ones: PSNR and SSIM, by torchmetrics."""

from typing import cast

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ersde_lit.tf32 import tf32

WINDOW = 11  # pixels, of SSIM
MOST = 100.0  # dB


def fidelity(images: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Computes "psnr" in dB and "ssim" of each image [B], both of images [B, C, H, W] clipped to [-1, 1].

    "psnr" is at most 100 dB, that of an image that equals the clean one, so that means exist. "ssim" is left out where
    images are smaller than its window of 11 pixels. Of NaN both are NaN.
    """
    images, clean = ((x.float().clip(-1, 1) + 1) / 2 for x in (images, clean))  # SSIM depends on where black is
    psnr = peak_signal_noise_ratio(images, clean, data_range=1.0, reduction="none", dim=(1, 2, 3))
    values = {"psnr": psnr.clip(max=MOST)}
    if min(clean.shape[-2:]) >= WINDOW:
        with tf32(False):
            ssim = structural_similarity_index_measure(images, clean, data_range=1.0, reduction="none")
            values["ssim"] = cast(Tensor, ssim)
    return values
