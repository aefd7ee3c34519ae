"""Denoiser: the interface of solvers to models, denoiser(y, lam, labels) = E[x0 | y]."""

import math

import torch
from torch import Tensor, nn

from ersde_lit.denoisers.latents import Latents
from ersde_lit.denoisers.noise_laws import NoiseLaw, White
from ersde_lit.denoisers.preconditioning import (
    PRECONDITIONINGS,
    PREDICTIONS,
    PreconditioningName,
    PredictionName,
    check,
)
from ersde_lit.denoisers.processes import VE, Process
from ersde_lit.errors import UserError
from ersde_lit.networks import Network
from ersde_lit.networks.magnitude import MPConv, MPFourier


class Denoiser(nn.Module):
    """A network with its preconditioning: E[x0 | y = x0 + lam eps] = c_skip y + c_out F(c_in y, c_noise).

    Args:
        network: the raw F.
        process: the noising process; it fixes the times that "vp", "iddpm" and "flow" networks are told.
        preconditioning: "edm", "vp", "iddpm", "ve", "flow" or "eda"; scales the network's input.
        prediction: what the network predicts: "edm" (the skip combination of Karras et al. 2022), "eps", "x0", "v"
            (v of VP, velocity of flow), "score" (sigma times it) or "eda" (N, at weight 1 on x0).
        sigma_data: standard deviation of the data, for "edm" and "eda" (of encoded images).
        uncertainty: whether to learn the uncertainty of the loss at each noise level (`Uncertainty`).
        latents: what its samples are where they are an autoencoder's latents; None: pixels in [-1, 1].
        noise: the law of N in y = x0 + lam N; None: `White`. Others go with process `EDA` and preconditioning "eda".

    Attributes:
        lam_min, lam_max: the range in which it may be called; samplers fit their grids into it.
        levels: the lams of a discrete-time process (float64, ascending) or None; samplers snap their grids to them.
        trained_classes: those that had training images, ascending; None: all. No others are sampled.
        class_names: one a class, or none at all.

    Raises:
        ValueError: process, preconditioning, prediction and noise do not go together; latents of other channels.
    """

    def __init__(
        self,
        network: Network,
        process: Process | None = None,
        preconditioning: PreconditioningName = "edm",
        prediction: PredictionName = "edm",
        sigma_data: float = 0.5,
        uncertainty: bool = False,
        latents: Latents | None = None,
        noise: NoiseLaw | None = None,
    ) -> None:
        super().__init__()
        process = VE() if process is None else process
        self.noise = White() if noise is None else noise
        if self.restores != (preconditioning == "eda"):
            raise UserError(
                f"noise {type(self.noise).__name__} does not go with preconditioning {preconditioning!r}: noise other "
                "than White needs process EDA, preconditioning 'eda' and prediction 'eda', and these need such noise"
            )
        check(preconditioning, prediction, process)
        if latents is not None and self.restores:
            raise UserError("a model of latents samples images; one that restores them works on pixels: leave one out")
        if not 0 < sigma_data < math.inf:
            raise UserError(f"sigma_data is a standard deviation, got {sigma_data}")
        if latents is not None and len(latents.mean) != network.image_shape[0]:
            raise UserError(f"the latents have {len(latents.mean)} channels, the network's {network.image_shape[0]}")
        self.network = network
        self.process = process
        self.preconditioning = preconditioning
        self.prediction = prediction
        self.sigma_data = sigma_data
        self.uncertainty = Uncertainty() if uncertainty else None
        self.latents = latents
        self.lam_min, self.lam_max = PRECONDITIONINGS[preconditioning].lam_range(process)
        self.trained_classes: tuple[int, ...] | None = None
        self.class_names: tuple[str, ...] = ()
        self.levels = None if preconditioning == "edm" else process.levels

    @property
    def restores(self) -> bool:
        """Whether it restores images, its noise being their degradation, rather than sampling them."""
        return not isinstance(self.noise, White)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.network.image_shape

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    def forward(self, y: Tensor, lam: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """x0 prediction [B, C, H, W] from y [B, C, H, W] at lam ([] or [B]); labels int64 [B], -1 = unconditional."""
        lam = lam.to(y.dtype)  # on its own device: a 0-dim host tensor mixes with any device, and nothing waits
        preconditioning = PRECONDITIONINGS[self.preconditioning]
        c_in = preconditioning.c_in(lam * self.noise.std, self.sigma_data, self.process)
        c_noise = preconditioning.c_noise(lam, self.process.t_of_lam(lam))
        c_skip, c_out = PREDICTIONS[self.prediction].coefficients(lam, self.sigma_data, self.process)
        dtype = next(self.network.parameters()).dtype
        raw = self.network(
            (_column(c_in) * y).to(dtype), c_noise.to(y.device, non_blocking=True).expand(len(y)), labels, augment
        )
        return _column(c_skip) * y + _column(c_out) * raw.to(y.dtype)

    def loss(
        self, x0: Tensor, lam: Tensor, eps: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Training loss [B]: `error`, or error / exp(u) + u with learned uncertainty u(lam); arguments as there."""
        error = self.error(x0, lam, eps, labels, augment)
        if self.uncertainty is None:
            return error
        u = self.uncertainty(lam)
        return error / u.exp() + u

    def error(
        self, x0: Tensor, lam: Tensor, eps: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Weighted squared error of the denoised x0 + lam eps, mean over each image [B]; x0, eps [B, C, H, W], lam [B].

        The weight makes it the plain squared error of the network's own output, as published for EDM, VP (eps), VE
        (score) and v; for a direct prediction of x0 it is Min-SNR (Hang et al. 2023).
        """
        prediction = PREDICTIONS[self.prediction]
        _, c_out = prediction.coefficients(lam, self.sigma_data, self.process)
        error = self(x0 + _column(lam) * eps, lam, labels, augment) - x0
        return prediction.weight(lam, c_out) * error.square().flatten(1).mean(1)


class Uncertainty(nn.Module):
    """u(lam): [B] -> [B], trained beside a network as the logarithm of its expected loss at each noise level.

    The loss L becomes L / exp(u) + u (Karras et al. 2024, arXiv:2312.02696, eq. 21), so all noise levels contribute
    alike to the gradient. Sampling does not use it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fourier, self.linear = MPFourier(128), MPConv(128, 1)

    def forward(self, lam: Tensor) -> Tensor:
        with torch.autocast(lam.device.type, enabled=False):  # bfloat16 would make errors of a hundredth
            return self.linear(self.fourier(lam.log() / 4)).squeeze(1)


def _column(coefficient: Tensor) -> Tensor:
    return coefficient.view(-1, 1, 1, 1) if coefficient.ndim else coefficient
