"""Guidance as wrappers of denoisers, so that solvers and samplers need not know of it.

Each wrapper is called like a `Denoiser` and may wrap another: EpsilonScaling(ClassifierFree(denoiser, 2.0), 1.005).
Its other attributes (lam_min, levels, image_shape, ...) are those of the denoiser it wraps.

All are in terms of x0 predictions D. The score of y = x0 + lam eps is (D(y) - y) / lam^2 (Tweedie's formula), so what
the papers do to scores or to eps is the same linear combination of the D.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ersde_lit.denoisers.labels import trained_of
from ersde_lit.errors import UserError

Interval = tuple[float, float]
Scale = float | Tensor


class Wrapper(nn.Module):
    """Base class of wrappers of a denoiser, with its attributes."""

    denoiser: nn.Module

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "denoiser":  # not there yet while being copied or unpickled
                raise
            return getattr(self.denoiser, name)


class Guidance(Wrapper):
    """Base class of wrappers with a strength, in an interval of noise levels (Kynkaanniemi et al. 2024).

    Args:
        denoiser: the denoiser to guide.
        scale: the strength; `plain` is no guidance, one call of the denoiser alone.
        interval: (low, high): guidance only where low < lam <= high (arXiv:2404.07724); None: everywhere. For a 0-dim
            lam, which solvers keep on the host, this is decided before any call. With one lam per image it is decided
            per image, and all are computed with guidance and without.

    Raises:
        ValueError: a scale that is not finite, an interval that is empty, a denoiser that restores images; in a call,
            labels that are missing.
    """

    plain = 1.0
    needs_labels = True

    def __init__(self, denoiser: nn.Module, scale: float, interval: Interval | None = None) -> None:
        super().__init__(denoiser)
        _check_samples(denoiser)
        if not math.isfinite(scale):
            raise UserError(f"the guidance scale must be a finite number, got {scale}")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise UserError(f"a guidance interval is (low, high) with 0 <= low < high, got {tuple(interval)}")
        self.scale = scale
        self.interval = interval

    def forward(self, y: Tensor, lam: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """x0 prediction [B, ...] from y [B, ...] at lam ([] or [B]); labels int64 [B], -1 = unconditional."""
        if labels is None and self.needs_labels:
            raise UserError(f"{type(self).__name__} guides towards a class: pass labels")
        lam = lam.to(y.dtype)
        scale = self._scale_at(lam, y.ndim)
        if not isinstance(scale, Tensor) and scale == self.plain:
            return _call(self.denoiser, y, lam, labels, augment)
        return self._guided(y, lam, labels, augment, scale)

    def _guided(self, y: Tensor, lam: Tensor, labels: Tensor | None, augment: Tensor | None, scale: Scale) -> Tensor:
        raise NotImplementedError

    def _scale_at(self, lam: Tensor, ndim: int) -> Scale:
        if self.interval is None:
            return self.scale
        inside = (self.interval[0] < lam) & (lam <= self.interval[1])
        if lam.ndim == 0:
            return self.scale if inside else self.plain
        return _per_image(torch.where(inside, self.scale, self.plain).to(lam.dtype), ndim)


class ClassifierFree(Guidance):
    """Classifier-free guidance: D_u + scale (D_c - D_u), with and without labels in one call of twice the batch.

    Ho & Salimans 2022 (arXiv:2207.12598), whose w is scale - 1: here 1 is the plain conditional denoiser. The denoiser
    has to know both, from training with `label_dropout`.

    Raises:
        ValueError: the denoiser has no classes, and as `Guidance`.
    """

    def __init__(self, denoiser: nn.Module, scale: float, interval: Interval | None = None) -> None:
        super().__init__(denoiser, scale, interval)
        if not denoiser.num_classes:
            raise UserError("classifier-free guidance needs a class-conditional model; this one has no classes")

    def _guided(self, y: Tensor, lam: Tensor, labels: Tensor | None, augment: Tensor | None, scale: Scale) -> Tensor:
        assert labels is not None
        x0 = _call(
            self.denoiser,
            torch.cat([y, y]),
            torch.cat([lam, lam]) if lam.ndim else lam,
            torch.cat([labels, torch.full_like(labels, -1)]),
            None if augment is None else torch.cat([augment, augment]),
        )
        conditional, unconditional = x0.chunk(2)
        return conditional + (scale - 1) * (conditional - unconditional)


class Autoguidance(Guidance):
    """Guidance by a worse version of the same model: D_guide + scale (D - D_guide).

    Karras et al. 2024 (arXiv:2406.02507), whose w is scale: 1 is the plain denoiser. Both get the labels, if any; an
    unconditional guide (num_classes 0) gets none, which makes this classifier-free guidance by two models.

    Args:
        guide: trained on the same data, but less, or smaller: an early checkpoint. It is called at the noise levels of
            `denoiser`.

    Raises:
        ValueError: the guide is of other images, latents, classes or noise levels, or was trained on fewer classes,
            and as `Guidance`.
    """

    needs_labels = False

    def __init__(self, denoiser: nn.Module, guide: nn.Module, scale: float, interval: Interval | None = None) -> None:
        super().__init__(denoiser, scale, interval)
        _check_samples(guide)
        for name in ("image_shape", "num_classes", "lam_min", "lam_max", "latents"):
            its, own = getattr(guide, name, None), getattr(denoiser, name, None)
            if its != own and not (name == "num_classes" and its == 0):
                raise UserError(f"the guide is no version of the guided model: its {name} is {its}, not {own}")
        if guide.num_classes and (missing := {*_trained(denoiser)} - {*_trained(guide)}):
            raise UserError(f"the guide has not seen class {min(missing)}, on which the guided model was trained")
        self.guide = guide

    def _guided(self, y: Tensor, lam: Tensor, labels: Tensor | None, augment: Tensor | None, scale: Scale) -> Tensor:
        better = _call(self.denoiser, y, lam, labels, augment)
        return better + (scale - 1) * (better - _call(self.guide, y, lam, labels, augment))


class ClassifierGuidance(Guidance):
    """Guidance by a classifier of noisy images: D + scale lam^2 grad_y log p(label | y, lam).

    Dhariwal & Nichol 2021 (arXiv:2105.05233): 0 is the plain denoiser. With scale 1 and an unconditional denoiser this
    is exactly E[x0 | y, label]: grad log p(y | label) = grad log p(y) + grad log p(label | y) by Bayes' rule, and each
    D is y + lam^2 times its score. A denoiser with classes gets the labels as well; `Unconditional` keeps them from
    it. Works under torch.inference_mode too.

    Args:
        denoiser: conditional or not.
        classifier: ``classifier(y, lam) -> log p(k | y, lam)``, float [B, num_classes], such as a trained
            `NoisyClassifier` or a `CleanClassifier`. Log-probabilities, not logits: nothing is normalised here.

    Raises:
        ValueError: denoiser and classifier have different classes, and as `Guidance`.
    """

    plain = 0.0

    def __init__(
        self, denoiser: nn.Module, classifier: nn.Module, scale: float, interval: Interval | None = None
    ) -> None:
        super().__init__(denoiser, scale, interval)
        if denoiser.num_classes not in (0, classifier.num_classes):
            raise UserError(f"the classifier has {classifier.num_classes} classes, the model {denoiser.num_classes}")
        self.classifier = classifier
        self.num_classes = classifier.num_classes

    def _guided(self, y: Tensor, lam: Tensor, labels: Tensor | None, augment: Tensor | None, scale: Scale) -> Tensor:
        assert labels is not None
        gradient = _log_probability_gradient(self.classifier, y, lam, labels)
        return _call(self.denoiser, y, lam, labels, augment) + scale * _per_image(lam, y.ndim) ** 2 * gradient


class Unconditional(Wrapper):
    """A class-conditional denoiser that was trained with `label_dropout`, without its labels: E[x0 | y]."""

    num_classes = 0

    def forward(self, y: Tensor, lam: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """As `Denoiser`; labels are ignored."""
        return _call(self.denoiser, y, lam, None, augment)


class EpsilonScaling(Wrapper):
    """Divides the predicted noise eps = (y - D) / lam by scale + slope t, against exposure bias.

    Ning et al. 2023 (arXiv:2308.15321): the constant schedule b is `scale`; k t + b, the linear one, has k as `slope`
    and for t the time of the denoiser's process: in [0, 1] for VP and flow, so that their k for a chain of N steps is
    slope / (N - 1); lam itself for VE and EDM. Their b lie between 0.9983 (EDM, 21 calls of Heun) and 1.017 (ADM, 20
    to 100 steps), both on CIFAR-10. Scale 1 and slope 0 are the plain denoiser.

    Raises:
        ValueError: a scale that is not positive, or a slope that is not finite.
    """

    def __init__(self, denoiser: nn.Module, scale: float, slope: float = 0.0) -> None:
        super().__init__(denoiser)
        if not 0 < scale < math.inf or not math.isfinite(slope):
            raise UserError(f"epsilon scaling needs scale > 0 and a finite slope, got {scale} and {slope}")
        self.scale, self.slope = scale, slope

    def forward(self, y: Tensor, lam: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """As `Denoiser`."""
        x0 = _call(self.denoiser, y, lam, labels, augment)
        divisor: Scale = self.scale
        if self.slope:
            divisor = self.scale + self.slope * _per_image(self.process.t_of_lam(lam.to(y.dtype)), y.ndim)
        return x0 + (1 - 1 / divisor) * (y - x0)


def _check_samples(denoiser: nn.Module) -> None:
    if getattr(denoiser, "restores", False):
        raise UserError("guidance is for models that sample images, and this one restores them")


def _trained(denoiser: Any) -> Sequence[int]:
    return trained_of(denoiser.num_classes, getattr(denoiser, "trained_classes", None))


def _log_probability_gradient(
    classifier: Callable[[Tensor, Tensor], Tensor], y: Tensor, lam: Tensor, labels: Tensor
) -> Tensor:
    """grad_y log p(labels[k] | y[k], lam), shaped as y; 0 where a label is -1."""
    with torch.inference_mode(False), torch.enable_grad():
        # Clones, because what was made in inference mode cannot be part of a graph.
        y, lam = y.detach().clone().requires_grad_(), lam.clone()
        log_p = classifier(y, lam).gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
        return torch.autograd.grad(log_p.where(labels >= 0, 0.0).sum(), y)[0]


def _call(denoiser: nn.Module, y: Tensor, lam: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
    """Calls a denoiser with labels only where it has classes, and with the conditions given only."""
    conditions = {"labels": labels if denoiser.num_classes else None, "augment": augment}
    return denoiser(y, lam, **{name: value for name, value in conditions.items() if value is not None})


def _per_image(value: Tensor, ndim: int) -> Tensor:
    return value.view(-1, *[1] * (ndim - 1)) if value.ndim else value
