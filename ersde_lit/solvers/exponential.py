"""Exponential Adams weights, the common formula of DPM-Solver++, UniPC, SA-Solver and DEIS.

On a step from l_s to l_t let ``h = ln(l_s / l_t)`` (DPM-Solver's half log-SNR step) and let u run from 0 at l_s to 1 at
l_t, linear in ln lam. With the noise scale ``phi(lam) = lam^p`` (p = 1: the ODE, p = 2: the reverse SDE, p = 1 + tau^2:
SA-Solver) and ``z = p h``, the exact step is

    y_t = e^-z y_s + Integral_0^1 z e^{-z (1 - u)} x0(u) du + b noise,        b^2 = l_t^2 (1 - e^{-2 (p - 1) h})

A multistep method puts a polynomial through past values of x0 at nodes u_j, so that its weights c solve

    sum_j c_j u_j^k = M_k(z),        M_k(z) = Integral_0^1 z e^{-z (1 - u)} u^k du = z k! phi_{k+1}(-z)

for k = 0, 1, .. below the number of nodes (phi_k: Hochbruck & Ostermann, Exponential integrators, Acta Numerica 2010).
Published solvers differ in their orders, and in which M_k they simplify.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ersde_lit.solvers.tableau import Tableau

Moments = Callable[[float, int], list[float]]


def moments(z: float, count: int) -> list[float]:
    """``M_k(z)`` for k = 0 .. count - 1, exact to rounding for any real z other than 0."""
    if abs(z) < 1:  # the recurrence below cancels here
        return [
            math.factorial(k) * math.fsum(z * (-z) ** n / math.factorial(n + k + 1) for n in range(20))
            for k in range(count)
        ]
    values = [-math.expm1(-z)]
    for k in range(1, count):
        values.append(1 - k / z * values[-1])
    return values


def nodes(lams: Tensor, i: int, newest: int, count: int) -> Tensor:
    """Where ``lams[newest]``, ``lams[newest - 1]``, .. lie on step i, on which u runs from 0 to 1."""
    logs = lams[newest - count + 1 : newest + 1].flip(0).log()
    return (lams[i].log() - logs) / (lams[i] / lams[i + 1]).log()


def weights(moments: Sequence[float], nodes: Tensor) -> Tensor:
    """Weights of the values at `nodes` that integrate ``u^k`` to ``moments[k]``."""
    k = torch.arange(len(nodes))[:, None]
    return torch.linalg.solve(nodes**k, torch.tensor(moments, dtype=torch.float64))


def ramp(steps: int, order: int, *, down: bool) -> list[int]:
    """Order of each step: 1, 2, .. up to `order`, where history is short, and if `down` back to 1 at the end."""
    return [min(order, i + 1, steps - i if down else order) for i in range(steps)]


def multistep(
    lams: Tensor,
    orders: Sequence[int],
    *,
    moments: Moments = moments,
    powers: Sequence[float] | None = None,
    corrector_orders: Sequence[int] | None = None,
) -> Tableau:
    """The table of a multistep method in x0.

    Args:
        lams: (N+1,) checked noise levels. A step into lam = 0 is of order 1 and not corrected.
        orders: number of nodes of the predictor on each step.
        moments: called as ``moments(z, count)``: a family's own version of `moments`.
        powers: p on each step; None is 1 everywhere, the ODE.
        corrector_orders: number of nodes of the corrector on each step, the new one included; 0 corrects nothing.
    """
    steps = len(lams) - 1
    powers = powers or [1.0] * steps
    corrector_orders = corrector_orders or [0] * steps
    r, b = torch.zeros(2, steps, dtype=torch.float64)
    c = torch.zeros(steps, max(orders), dtype=torch.float64)
    corrector = torch.zeros(steps, max(corrector_orders), dtype=torch.float64)
    for i, (p, k, m) in enumerate(zip(powers, orders, corrector_orders, strict=True)):
        if lams[i + 1] == 0:
            c[i, 0] = 1
            continue
        h = math.log(lams[i] / lams[i + 1])
        r[i] = math.exp(-p * h)
        b[i] = lams[i + 1] * math.sqrt(-math.expm1(-2 * (p - 1) * h))
        c[i, :k] = weights(moments(p * h, k), nodes(lams, i, i, k))
        if m and i < steps - 1:  # the last step's end is never evaluated
            corrector[i, :m] = weights(moments(p * h, m), nodes(lams, i, i + 1, m))
    return Tableau(lams, r, c, b, corrector if corrector.numel() else None)
