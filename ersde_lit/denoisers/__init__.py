"""Denoisers E[x0 | y] made of raw networks: processes, noise laws, preconditioning, predictions, losses, guidance."""

from ersde_lit.denoisers.clean_classifier import CleanClassifier, smoothed
from ersde_lit.denoisers.denoiser import Denoiser
from ersde_lit.denoisers.density import LogNormal, LogUniform, NoiseDensity, UniformTime
from ersde_lit.denoisers.fields import BiasField, FieldNoise
from ersde_lit.denoisers.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    EpsilonScaling,
    Unconditional,
)
from ersde_lit.denoisers.latents import Latents
from ersde_lit.denoisers.noise_laws import NoiseLaw, PairNoise, White
from ersde_lit.denoisers.processes import EDA, VE, VP, Cosine, Flow, Process, ScaledLinear

__all__ = [
    "EDA",
    "VE",
    "VP",
    "Autoguidance",
    "BiasField",
    "ClassifierFree",
    "ClassifierGuidance",
    "CleanClassifier",
    "Cosine",
    "Denoiser",
    "EpsilonScaling",
    "FieldNoise",
    "Flow",
    "Latents",
    "LogNormal",
    "LogUniform",
    "NoiseDensity",
    "NoiseLaw",
    "PairNoise",
    "Process",
    "ScaledLinear",
    "Unconditional",
    "UniformTime",
    "White",
    "smoothed",
]
