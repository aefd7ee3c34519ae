"""Raw networks F(x, c_noise, labels); a `Denoiser` wraps them. They never see a solver."""

from ersde_lit.networks.base import Network
from ersde_lit.networks.unet import UNet

__all__ = ["Network", "UNet"]
