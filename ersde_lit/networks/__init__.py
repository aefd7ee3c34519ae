"""Raw networks F(x, c_noise, labels), which a `Denoiser` wraps."""

from ersde_lit.networks.base import Network
from ersde_lit.networks.dhariwal import DhariwalUNet
from ersde_lit.networks.dhariwal_encoder import DhariwalClassifierEncoder, DhariwalEncoder
from ersde_lit.networks.edm2 import EDM2UNet
from ersde_lit.networks.encoder import ClassifierEncoder, Encoder
from ersde_lit.networks.song import SongUNet
from ersde_lit.networks.unet import UNet

__all__ = [
    "ClassifierEncoder",
    "DhariwalClassifierEncoder",
    "DhariwalEncoder",
    "DhariwalUNet",
    "EDM2UNet",
    "Encoder",
    "Network",
    "SongUNet",
    "UNet",
]
