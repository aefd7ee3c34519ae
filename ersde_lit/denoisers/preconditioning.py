"""Preconditioning and prediction types: E[x0 | y] = c_skip y + c_out F(c_in y, c_noise), with y = x0 + lam eps.

Two independent choices, each a table of functions of (lam, sigma_data, process):

- *preconditioning* scales what the network sees: c_in and c_noise (Karras et al. 2022, table 1);
- *prediction* says what the network's output means: c_skip and c_out, and with them the training weight.

In y the noising process hardly matters: c_in y is the native x for VP and flow, whose c_in is alpha.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ersde_lit.denoisers.density import LogNormal, LogUniform, NoiseDensity, UniformTime
from ersde_lit.denoisers.processes import EDA, VE, VP, Cosine, Flow, Process
from ersde_lit.errors import UserError

PreconditioningName = Literal["edm", "vp", "iddpm", "ve", "flow", "eda"]
PredictionName = Literal["edm", "eps", "x0", "v", "score", "eda"]


class Preconditioning(NamedTuple):
    c_in: Callable[[Tensor, float, Process], Tensor]
    c_noise: Callable[[Tensor, Tensor], Tensor]  # of (lam, t)
    processes: tuple[type[Process], ...]  # those it is defined for
    lam_range: Callable[[Process], tuple[float, float]]  # where such a network may be called
    density: NoiseDensity  # the noise levels it was published with


class Prediction(NamedTuple):
    coefficients: Callable[[Tensor, float, Process], tuple[Tensor, Tensor]]  # -> c_skip, c_out
    weight: Callable[[Tensor, Tensor], Tensor]  # of (lam, c_out), for the squared error of x0
    processes: tuple[type[Process], ...]


def _unit_variance(lam: Tensor, sigma_data: float, process: Process) -> Tensor:
    return torch.rsqrt(lam**2 + sigma_data**2)


def _alpha(lam: Tensor, sigma_data: float, process: Process) -> Tensor:
    return process.alpha_of_lam(lam)


PRECONDITIONINGS: dict[str, Preconditioning] = {
    "edm": Preconditioning(
        _unit_variance, lambda lam, t: lam.log() / 4, (Process,), lambda process: (0.0, math.inf), LogNormal()
    ),
    "vp": Preconditioning(_alpha, lambda lam, t: 999 * t, (VP,), Process.lam_range, UniformTime()),
    "iddpm": Preconditioning(_alpha, lambda lam, t: 999 * t, (Cosine,), Process.lam_range, UniformTime()),
    "ve": Preconditioning(_alpha, lambda lam, t: (lam / 2).log(), (VE,), Process.lam_range, LogUniform()),
    "flow": Preconditioning(_alpha, lambda lam, t: 1000 * t, (Flow,), Process.lam_range, LogNormal(0.0, 1.0)),
    "eda": Preconditioning(_unit_variance, lambda lam, t: 999 * t, (EDA,), Process.lam_range, UniformTime(0.01)),
}


def _edm_output(lam: Tensor, sigma_data: float, process: Process) -> tuple[Tensor, Tensor]:
    variance = lam**2 + sigma_data**2
    return sigma_data**2 / variance, lam * sigma_data * torch.rsqrt(variance)


def _v_output(lam: Tensor, sigma_data: float, process: Process) -> tuple[Tensor, Tensor]:
    if isinstance(process, Flow):  # v = eps - x0
        return 1 / (1 + lam), -lam / (1 + lam)
    return 1 / (1 + lam**2), -lam * torch.rsqrt(1 + lam**2)  # v = alpha eps - sigma x0


def _of_output(lam: Tensor, c_out: Tensor) -> Tensor:
    """Plain squared error of the network's own output, as published for every prediction but x0."""
    return c_out**-2


def _min_snr(lam: Tensor, c_out: Tensor) -> Tensor:
    """min(SNR, 5): Hang et al. 2023 (Min-SNR), for a direct prediction of x0."""
    return (lam**-2).clamp(max=5.0)


PREDICTIONS: dict[str, Prediction] = {
    "edm": Prediction(_edm_output, _of_output, (Process,)),  # Karras et al. 2022
    "eps": Prediction(lambda lam, *_: (torch.ones_like(lam), -lam), _of_output, (Process,)),  # Ho et al. 2020
    "x0": Prediction(lambda lam, *_: (torch.zeros_like(lam), torch.ones_like(lam)), _min_snr, (Process,)),
    "v": Prediction(_v_output, _of_output, (VP, Flow, Cosine)),  # Salimans & Ho 2022, appendix D
    # F = N, and weight 1 on x0: Qiu et al. 2026
    "eda": Prediction(lambda lam, *_: (torch.ones_like(lam), -lam), lambda lam, c_out: torch.ones_like(lam), (EDA,)),
    # F = sigma * score = -eps: Song et al. 2021
    "score": Prediction(lambda lam, *_: (torch.ones_like(lam), lam), _of_output, (Process,)),
}


def check(preconditioning: str, prediction: str, process: Process) -> None:
    """Raises ValueError where the three do not go together."""
    for kind, name, table in (
        ("preconditioning", preconditioning, PRECONDITIONINGS),
        ("prediction", prediction, PREDICTIONS),
    ):
        if name not in table:
            raise UserError(f"unknown {kind} {name!r}: choose one of {', '.join(table)}")
        if not isinstance(process, table[name].processes):
            needed = " or ".join(p.__name__ for p in table[name].processes)
            raise UserError(f"{kind} {name!r} needs the process {needed}, got {type(process).__name__}")
    if prediction == "edm" and preconditioning != "edm":
        raise UserError(
            f"prediction 'edm' assumes inputs of unit variance: it needs preconditioning 'edm', got {preconditioning!r}"
        )
