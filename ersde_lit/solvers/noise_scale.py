"""Noise scale functions phi, which set how much noise a step adds: x is the ODE, x^2 the reverse SDE.

A phi is given by two functions of lam, both vectorised over float64 tensors: ``log_g = ln(phi / lam)``, whose change
over a step is all that r and b depend on, and ``kappa = d ln phi / d ln lam``. A step adds noise and never removes it,
so phi / lam must not decrease with lam, ``kappa >= 1``; `step_log_g` checks that where the steps are known.

Source: Cui et al., Elucidating the solution space of extended reverse-time SDE for diffusion models,
https://arxiv.org/abs/2309.06169; the names number the functions as the published code does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ersde_lit.errors import UserError
from ersde_lit.solvers.checks import is_number, is_positive

Curve = Callable[[Tensor], Tensor]

STEEPEST = 32.0  # the growth of ln phi over a panel up to which 32 points have 1e-13


@dataclass(frozen=True)
class NoiseScale:
    """Noise scale phi, given by log_g = ln(phi / lam) and kappa = d ln phi / d ln lam.

    Attributes:
        name: for messages.
        log_g: lam -> ln(phi / lam).
        kappa: lam -> d ln phi / d ln lam.
        panel: the stretch of ln lam over which phi is smooth enough for 32 Gauss-Legendre points.
    """

    name: str
    log_g: Curve
    kappa: Curve
    panel: float = 2.0

    def __repr__(self) -> str:
        return self.name

    def phi(self, lam: Tensor) -> Tensor:
        return lam * self.log_g(lam).exp()

    def step_log_g(self, lams: Tensor) -> Tensor:
        """Change of log_g over each step of the positive `lams`, at most 0; ValueError where phi / lam increases."""
        log_g = self.log_g(lams)
        change = log_g.diff()
        # Rounding alone may leave a change of a few ulps above 0.
        invalid = ~(change <= 1e-14 * (1 + log_g[1:].abs()))
        if invalid.any():
            i = int(invalid.int().argmax())
            raise UserError(
                f"noise scale {self.name} is not valid from lam {lams[i]:.6g} to {lams[i + 1]:.6g}: phi / lam must be "
                f"finite and must not grow as lam falls; lower lam_max or take another noise scale"
            )
        return change.clamp(max=0)


def power(p: float) -> NoiseScale:
    """phi = lam^p, p >= 1. A step of it is the exponential integrator of every ODE (p = 1) or SDE (p = 2) solver."""
    if not is_number(p, 1):
        raise UserError(f"power p must be a number of at least 1, not {p!r}")
    return NoiseScale(
        f"power({p})", lambda lam: (p - 1) * lam.log(), lambda lam: torch.full_like(lam, p), min(2.0, STEEPEST / p)
    )


def eta(base: str | NoiseScale, s: float) -> NoiseScale:
    """phi = lam^(1-s) base^s, s >= 0: from the ODE (0) through `base` (1) to more noise than it adds."""
    base = noise_scale(base)
    if not is_number(s, 0):
        raise UserError(f"eta s must be a number of at least 0, not {s!r}")
    return NoiseScale(
        f"eta({base.name}, {s})",
        lambda lam: s * base.log_g(lam),
        lambda lam: 1 + s * (base.kappa(lam) - 1),
        base.panel / max(1, s),
    )


def window(strength: float, low: float, high: float, width: float = 0.25) -> NoiseScale:
    """Noise for lam between `low` and `high` only, as in EDM's churn interval (S_tmin, S_tmax), with smooth edges.

        kappa = 1 + strength (sigmoid(ln(lam / low) / width) - sigmoid(ln(lam / high) / width))

    Args:
        strength: kappa - 1 inside, at least 0; 1 is the reverse SDE's.
        low, high: the window's edges, 0 < low < high.
        width: of the edges in ln lam, at least 0.1.
    """
    edges_valid = is_positive(low) and is_positive(high) and low < high
    if not (is_number(strength, 0) and edges_valid and is_number(width, 0.1)):
        raise UserError(
            f"window needs strength >= 0, 0 < low < high and width >= 0.1, not {strength}, {low}, {high}, {width}"
        )

    def edges(lam: Tensor) -> tuple[Tensor, Tensor]:
        return (lam / low).log() / width, (lam / high).log() / width

    def log_g(lam: Tensor) -> Tensor:
        rise, fall = edges(lam)
        return strength * width * (softplus(rise, threshold=40) - softplus(fall, threshold=40))

    def kappa(lam: Tensor) -> Tensor:
        rise, fall = edges(lam)
        return 1 + strength * (rise.sigmoid() - fall.sigmoid())

    panel = min(2.0, 2 * width, STEEPEST / (1 + strength))
    return NoiseScale(f"window({strength}, {low}, {high}, {width})", log_g, kappa, panel)


def custom(fn: Curve, kappa: Curve | None = None, name: str | None = None) -> NoiseScale:
    """phi = fn(lam), positive, elementwise on float64 tensors; kappa by autograd unless given.

    fn must be smooth over stretches of 2 in ln lam, as all named ones are: a table in which a jump, or a kappa that is
    not fn's, shows is refused, whatever its order.

    Raises:
        ValueError: fn or kappa cannot be called; later, fn is not made of what autograd follows and kappa is not given.
    """
    for function in (fn, kappa):
        if function is not None and not callable(function):
            raise UserError(f"custom takes functions of lam, not {function!r}")
    label = name or f"custom({getattr(fn, '__name__', fn)})"

    def log_g(lam: Tensor) -> Tensor:
        return (fn(lam) / lam).log()

    def derivative(lam: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            log_lam = lam.detach().log().requires_grad_()
            try:
                (gradient,) = torch.autograd.grad(fn(log_lam.exp()).log().sum(), log_lam)
            except RuntimeError as error:
                raise UserError(f"autograd cannot follow {label}, pass kappa=, its d ln phi / d ln lam") from error
        return gradient

    return NoiseScale(label, log_g, kappa or derivative)


def _er_sde_1() -> NoiseScale:
    """lam (exp(-1/lam) + 10)."""

    def kappa(lam: Tensor) -> Tensor:
        e = (-1 / lam).exp()
        return 1 + e / (lam * (e + 10))

    return NoiseScale("er_sde_1", lambda lam: ((-1 / lam).exp() + 10).log(), kappa)


def _er_sde_4() -> NoiseScale:
    """lam^0.9 log10(1 + 100 lam^1.5); not valid above lam = 1022."""

    def log_g(lam: Tensor) -> Tensor:
        return (torch.log1p(100 * lam**1.5) / math.log(10)).log() - 0.1 * lam.log()

    def kappa(lam: Tensor) -> Tensor:
        z = 100 * lam**1.5
        return 0.9 + 1.5 * z / ((1 + z) * torch.log1p(z))

    return NoiseScale("er_sde_4", log_g, kappa)


def _er_sde_5() -> NoiseScale:
    """lam (exp(lam^0.3) + 10), the published default."""
    ln10 = torch.tensor(math.log(10), dtype=torch.float64)

    def kappa(lam: Tensor) -> Tensor:
        z = lam**0.3
        return 1 + 0.3 * z * (z - ln10).sigmoid()

    return NoiseScale("er_sde_5", lambda lam: torch.logaddexp(lam**0.3, ln10), kappa)


_NAMED: dict[str, NoiseScale] = {
    "ode": NoiseScale("ode", torch.zeros_like, torch.ones_like),
    "sde": replace(power(2), name="sde"),
    "er_sde_1": _er_sde_1(),
    "er_sde_2": replace(power(1.5), name="er_sde_2"),
    "er_sde_3": replace(power(2.5), name="er_sde_3"),
    "er_sde_4": _er_sde_4(),
    "er_sde_5": _er_sde_5(),
}


_WRITTEN = "power:P", "eta:NAME:S", "window:STRENGTH:LOW:HIGH:WIDTH"


def noise_scale(name: str | NoiseScale) -> NoiseScale:
    """Noise scale by name: ode, sde, er_sde_1 .. er_sde_5, or a constructor with its arguments, as in
    "power:1.5", "eta:er_sde_5:0.5" or "window:1:0.05:2:0.25"; a NoiseScale is returned as it is."""
    if isinstance(name, NoiseScale):
        return name
    if name in _NAMED:
        return _NAMED[name]
    kind, *words = str(name).split(":")
    match kind, [*words[:-1]], words[-1:]:
        case "power", [], [p]:
            return power(_number(name, p))
        case "eta", [_, *_] as base, [s]:
            return eta(":".join(base), _number(name, s))
        case "window", [_, _] | [_, _, _], _:
            return window(*(_number(name, word) for word in words))
    close = get_close_matches(str(name), _NAMED, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"unknown noise scale {name!r}, choose from {', '.join([*_NAMED, *_WRITTEN])}{hint}")


def _number(name: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UserError(f"noise scale {name!r}: {word!r} is no number; write it as {' or '.join(_WRITTEN)}") from None
