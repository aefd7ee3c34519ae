"""Learned uncertainty of the loss at each noise level (Karras et al. 2024, arXiv:2312.02696, eq. 21)."""

import torch
from torch import Tensor, nn

from ersde_lit.networks.magnitude import MPConv, MPFourier


class Uncertainty(nn.Module):
    """u(lam): [B] -> [B], trained beside a network as the logarithm of its expected loss at each noise level.

    The loss L becomes L / exp(u) + u, so all noise levels contribute alike to the gradient. Sampling does not use it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fourier, self.linear = MPFourier(128), MPConv(128, 1)

    def forward(self, lam: Tensor) -> Tensor:
        with torch.autocast(lam.device.type, enabled=False):  # bfloat16 would make errors of a hundredth
            return self.linear(self.fourier(lam.log() / 4)).squeeze(1)
