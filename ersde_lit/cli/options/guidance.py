"""Options of guidance, each of which adds a wrapper to the denoiser."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ersde_lit.errors import UserError
from ersde_lit.files import given

if TYPE_CHECKING:
    from torch import nn

_NUMBER = r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*"
_SIGNED = _NUMBER.replace("(", "([+-]?", 1)

FILES = ("guide", "classifier")


@dataclass(frozen=True)
class GuidanceOptions:
    """Guidance.

    Args:
        cfg_scale: classifier-free guidance; 1 is none. For models trained with label_dropout.
        guide: checkpoint of a worse version of the model, for autoguidance.
        guide_scale: of autoguidance; 1 is none.
        classifier: checkpoint of a classifier of noisy images, for classifier guidance.
        classifier_scale: of classifier guidance; 0 is none.
        guidance_interval: noise levels at which these three act, as in 0.19-1.61; all if not given.
        eps_scale: against exposure bias, predicted noise is divided by B, as in 1.005, or B + K t, as in 1.005,0.001.
    """

    cfg_scale: float | None = None
    guide: str | None = None
    guide_scale: float | None = None
    classifier: str | None = None
    classifier_scale: float | None = None
    guidance_interval: str | None = None
    eps_scale: str | int | float | None = None

    def __post_init__(self) -> None:
        for file, scale in (("guide", "guide_scale"), ("classifier", "classifier_scale")):
            if (getattr(self, file) is None) != (getattr(self, scale) is None):
                raise UserError(f"--{file} and --{scale} go together: give both or none")
        if self.eps_scale is not None:  # of which YAML may have made a number
            object.__setattr__(self, "eps_scale", str(self.eps_scale))
        _ = self.interval, self.scaling  # raise where they cannot be read
        if self.guidance_interval and not (self.cfg_scale is not None or self.guide or self.classifier):
            raise UserError("--guidance_interval: without guidance; add --cfg_scale, --guide or --classifier")

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) noise levels."""
        if self.guidance_interval is None:
            return None
        low, high = _numbers("guidance_interval", self.guidance_interval, f"{_NUMBER}-{_NUMBER}", "0.19-1.61")
        return low, high

    @property
    def scaling(self) -> tuple[float, ...] | None:
        """(scale, slope) or (scale,) of the predicted noise."""
        if self.eps_scale is None:
            return None
        return _numbers("eps_scale", str(self.eps_scale), f"{_NUMBER}(?:,{_SIGNED})?", "1.005 or 1.005,0.001")

    @property
    def checkpoints(self) -> dict[str, str]:
        """Paths of the given checkpoints, by option."""
        return given(guide=self.guide, classifier=self.classifier)

    def named(self) -> dict[str, Any]:
        """Values of the given options except files, by option."""
        return {name: value for name, value in vars(self).items() if value is not None and name not in FILES}

    def wrap(self, denoiser: "nn.Module", trust: bool = False, unlabelled: bool = False) -> "nn.Module":
        """Adds the guidance to a denoiser; `trust` as for `training.load`, `unlabelled` where images have no labels."""
        from ersde_lit.denoisers.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, EpsilonScaling

        if self.cfg_scale is not None:
            denoiser = ClassifierFree(denoiser, self.cfg_scale, self.interval)
        if self.guide is not None and self.guide_scale is not None:
            from ersde_lit.training import load

            guide = load(self.guide, trust)
            if unlabelled and guide.num_classes and not guide.label_dropout:
                raise UserError(f"--guide {self.guide} was trained with labels only, without label_dropout")
            denoiser = Autoguidance(denoiser, guide.ema_denoiser, self.guide_scale, self.interval)
        if self.classifier is not None and self.classifier_scale is not None:
            from ersde_lit.training.noisy_classifier import load_classifier

            classifier = load_classifier(self.classifier, trust)
            denoiser = ClassifierGuidance(denoiser, classifier, self.classifier_scale, self.interval)
        return denoiser if self.scaling is None else EpsilonScaling(denoiser, *self.scaling)


def _numbers(option: str, text: str, pattern: str, like: str) -> tuple[float, ...]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise UserError(f"--{option} {text!r}: write it as in {like}")
    return tuple(float(group) for group in match.groups() if group)
