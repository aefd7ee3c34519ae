"""Classifier of clean images, applied to the denoised image, for classifier guidance.

The calibration is that of Ma et al. 2024, "Elucidating the design space of classifier-guided diffusion generation"
(EluCD, arXiv:2310.11311), apart from their schedules of the scale, which an interval serves here.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersde_lit.errors import UserError


class CleanClassifier(nn.Module):
    """A classifier of clean images as one of noisy images, for `ClassifierGuidance`: it reads D(y, lam) = E[x0 | y].

        log p(k | y, lam) = joint * logit_k - log sum_j exp(marginal * logit_j)

    The gradient goes through the denoiser, so a guided call costs one more evaluation of it, forwards and backwards.
    (Ma et al. leave the denoiser's Jacobian out.)

    Args:
        denoiser: called without labels; with classes, it has to know that from training with `label_dropout`.
        model: float images [B, C, H, W], normalised, to logits [B, num_classes].
        num_classes: of `model`, in the order of the denoiser's.
        mean, std: what `model` expects taken from and divided out of images in [0, 1]; a number, or one a channel. More
            of them than channels repeat a grey image.
        size: height and width that images are resized to (bilinearly), if not those of the denoiser.
        joint, marginal: inverse temperatures. Equal, the gradient is that of log p(k | x); the smaller `marginal`, the
            more that of the joint log p(x, k), as the logits have it. Published: 1 with 0.5 (ADM) or 0 (EDM).

    Raises:
        ValueError: a negative temperature, a std that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        denoiser: nn.Module,
        model: nn.Module,
        num_classes: int,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        size: int | None = None,
        joint: float = 1.0,
        marginal: float = 1.0,
    ) -> None:
        super().__init__()
        if joint < 0 or marginal < 0:
            raise UserError(f"inverse temperatures must not be negative, got joint {joint} and marginal {marginal}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        if not (self.std > 0).all():
            raise UserError(f"std must be positive, got {std}")
        self.denoiser = denoiser
        self.model = model
        self.num_classes = num_classes
        self.size = size
        self.joint, self.marginal = joint, marginal

    def forward(self, y: Tensor, lam: Tensor) -> Tensor:
        """log p(k | y, lam), tempered: [B, num_classes] from y [B, C, H, W] and lam ([] or [B])."""
        images = (self.denoiser(y, lam) + 1) / 2
        if self.size is not None:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        logits = self.model((images - self.mean) / self.std)
        return self.joint * logits - (self.marginal * logits).logsumexp(1, keepdim=True)


def smoothed(model: nn.Module, beta: float = 3.0) -> nn.Module:
    """A copy of `model` whose ReLUs are Softplus(beta), which gives it gradients that guide better (Ma et al. 2024).

    Published with beta 3 (ADM) and 5 (EDM). ReLUs that are not modules of their own (torch.relu) cannot be found.

    Raises:
        ValueError: the model has no nn.ReLU.
    """
    model = deepcopy(model)
    names = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.ReLU)]
    if not names:
        raise UserError(f"{type(model).__name__} has no nn.ReLU to smooth")
    for name in names:
        model.set_submodule(name, nn.Softplus(beta))
    return model
