"""Denoisers E[x0 | y] made of raw networks: noising processes, preconditioning, prediction types, losses, guidance."""

from ersde_lit.denoisers.clean_classifier import CleanClassifier, smoothed
from ersde_lit.denoisers.denoiser import Denoiser
from ersde_lit.denoisers.density import LogNormal, LogUniform, NoiseDensity, UniformTime
from ersde_lit.denoisers.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    EpsilonScaling,
    Unconditional,
)
from ersde_lit.denoisers.latents import Latents
from ersde_lit.denoisers.processes import VE, VP, Cosine, Flow, Process, ScaledLinear

__all__ = [
    "VE",
    "VP",
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "CleanClassifier",
    "Cosine",
    "Denoiser",
    "EpsilonScaling",
    "Flow",
    "Latents",
    "LogNormal",
    "LogUniform",
    "NoiseDensity",
    "Process",
    "ScaledLinear",
    "Unconditional",
    "UniformTime",
    "smoothed",
]
