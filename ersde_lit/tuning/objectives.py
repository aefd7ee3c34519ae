"""Objectives: distances between sets in features, unbiased in a batch, and the distance to a teacher's end points.

A distance to a teacher teaches a table nothing about noise: a step's fresh noise can only add to it. A distance between
sets judges the law of the samples and nothing else.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.errors import UserError
from ersde_lit.metrics import Inception
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import Sampler
from ersde_lit.solvers.loop import Denoise
from ersde_lit.solvers.sampler import Noise

Extract = Callable[[Tensor], Tensor]


class ImageFeatures(nn.Module):
    """Features of uint8 images, such as the metrics', as a function of float images in [-1, 1], with gradients.

    Those of ``nn.Flatten()`` are the pixels, from 0 to 255. Images are rounded to 8 bits as stored ones are; the
    gradient passes the rounding straight through, and stops where a value is clipped.

    Raises:
        UserError: a gradient through Inception, whose published code reads integers only.
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.features(quantise(x))
        if isinstance(self.features, Inception):
            raise UserError("Inception gives no gradients: learn in other features, or without gradients (evolve)")
        levels = (x.float() * 127.5 + 128).clamp(0, 255)
        return self.features(levels + (levels.floor() - levels).detach())


class SetDistance(nn.Module):
    """Base class: the distance of a batch to a bank of real features, both centred and scaled as the bank asks.

    Args:
        features: samples [B, ...] to features [B, F], differentiable.
        bank: [M, F], features of what samples should be like; all of it is compared with every batch.
    """

    bank: Tensor
    centre: Tensor
    within: Tensor  # of the bank with itself

    def __init__(self, features: Extract, bank: Tensor) -> None:
        super().__init__()
        if bank.ndim != 2 or len(bank) < 2:
            raise UserError(f"a bank is of features [M, F] of at least 2 samples, not {list(bank.shape)}")
        self.features = features
        bank = bank.detach().float()
        self.register_buffer("centre", bank.mean(0))
        self.scale = float((bank - self.centre).square().mean().sqrt().clamp(min=1e-12))
        self.register_buffer("bank", (bank - self.centre) / self.scale)
        self.register_buffer("within", self._within(self.bank))

    def forward(self, x: Tensor, noise: Noise, labels: Tensor | None) -> Tensor:
        if len(x) < 2:
            raise UserError("a distance between sets needs batches and blocks of 2 samples or more")
        with torch.autocast(x.device.type, enabled=False):
            # A block that is only judged is larger than what is learned from.
            parts = [x] if torch.is_grad_enabled() else x.split(200)
            found = (torch.cat([self.features(part).float() for part in parts]) - self.centre) / self.scale
            return self.between(found, self.bank).mean() * 2 - self._within(found) - self.within

    def _within(self, found: Tensor) -> Tensor:
        """Mean over all pairs of two different samples, without bias."""
        n = len(found)
        total = torch.stack([self.between(part, found).double().sum() for part in found.split(1000)]).sum()
        own = self.alone(found).double().sum()
        return ((total - own) / (n * (n - 1))).to(found.dtype)

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Dissimilarity of each pair, (A, B)."""
        raise NotImplementedError

    def alone(self, a: Tensor) -> Tensor:
        """Dissimilarity of each to itself, (A,)."""
        raise NotImplementedError


class KernelDistance(SetDistance):
    """Kernel distance with ``(1 + f g / F)^3``, as KID has it (Binkowski et al. 2018, https://arxiv.org/abs/1801.01401).

    It compares moments up to the third. Unlike KID's features these are centred and scaled to those of the bank.
    """

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        return -((1 + a @ b.T / a.shape[1]) ** 3)

    def alone(self, a: Tensor) -> Tensor:
        return -((1 + a.square().mean(1)) ** 3)


class EnergyDistance(SetDistance):
    """Energy distance ``2 E|f - g| - E|f - f'| - E|g - g'|`` (Szekely & Rizzo 2013): 0 for equal laws only."""

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        return squares.clamp(min=1e-6).sqrt()

    def alone(self, a: Tensor) -> Tensor:
        return a.new_full((len(a),), 1e-3)


class SumOfDistances(nn.Module):
    """Energy distances in several features, added; each but the first is scaled to its unit.

    The scale makes two different real samples as far apart, on average, as in the first features. One distance alone
    lets learning exploit what its features do not see.
    """

    def __init__(self, *distances: EnergyDistance) -> None:
        super().__init__()
        self.distances = nn.ModuleList(distances)
        self.scales = [float(distances[0].within / one.within) for one in distances]

    def forward(self, x: Tensor, noise: Noise, labels: Tensor | None) -> Tensor:
        values = [one(x, noise, labels) * scale for one, scale in zip(self.distances, self.scales, strict=True)]
        return torch.stack(values).sum()


class Teacher(nn.Module):
    """Mean squared difference to what a sampler of many calls makes of the same noise, in features or in values.

    Args:
        denoiser, sampler, nfe: of the teacher, which is run anew on each batch, without gradients.
        features: samples to features; None: the samples themselves.
    """

    def __init__(self, denoiser: Denoise, sampler: Sampler, nfe: int, features: Extract = torch.Tensor.float) -> None:
        super().__init__()
        self.teacher = (denoiser,)  # no submodule: it is no part of this one's state
        self.sampler, self.nfe, self.features = sampler, nfe, features

    def forward(self, x: Tensor, noise: Noise, labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            target = self.features(self.sampler(self.teacher[0], noise, self.nfe, labels))
        return F.mse_loss(self.features(x), target)
