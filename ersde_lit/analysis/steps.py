"""Coefficients of a table step by step, and its errors on Gaussian data, exactly and without Monte Carlo.

Each function returns one value a step, (N,) float64, to show where on the noise axis a solver errs.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ersde_lit.solvers import ERSDE, NoiseScale, Solver, Tableau, noise_scale, power, sample
from ersde_lit.solvers.loop import Denoise, weighted_sum
from ersde_lit.solvers.oracles import BasisNoise, Gaussian, w2

_POINTS, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(32))
_NEAR_ZERO = 1e-9  # of the smallest scale in sight: what a noise level below it adds is below rounding


def injected_noise(tableau: Tableau) -> Tensor:
    """``b / l_t``: the share, in standard deviations, of a step's final noise that is new; NaN for the step into 0."""
    return (tableau.b / tableau.lams[1:]).abs()


def step_scales(solver: Solver, tableau: Tableau) -> list[NoiseScale]:
    """The noise scale whose SDE a solver approximates on each step.

    That of an ERSDE is its own. Others add noise as ``phi = lam^p`` does, with p = 1 for an ODE solver and p = 2 for
    one of the reverse SDE; where p changes from step to step (DDIM between its ends, SA-Solver's window) it is read
    from b. A step into 0, on which no solver adds noise, continues the step before.
    """
    if isinstance(solver, ERSDE):
        return [noise_scale(solver.noise_scale)] * tableau.nfe
    start, end = tableau.lams[:-1], tableau.lams[1:]
    excess = -torch.log1p(-(injected_noise(tableau) ** 2)) / (2 * (start / end).log())
    scales = [power(1 + p) for p in excess.nan_to_num().clamp(min=0).tolist()]
    if end[-1] == 0:
        scales[-1] = scales[-2] if len(scales) > 1 else power(1)
    return scales


def gaussian_kernel(phi: NoiseScale, std: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Gain and noise of the exact step from `start` to `end` on data N(0, std^2), each of std's shape:

        y_t = gain y_s + noise z,        gain = sqrt((std^2 + l_t^2) / (std^2 + l_s^2)) e^-I,
        noise = sqrt((std^2 + l_t^2) (1 - e^-2I)),        I = Integral (kappa - 1) l^2 / (std^2 + l^2) d ln l

    so that the law of y is N(0, std^2 + lam^2) at both ends. For phi = x, I = 0: the flow of the ODE.
    """
    variance = std**2
    smallest = min([start, *std[std > 0].tolist()])
    low = end or _NEAR_ZERO * smallest
    h = math.log(start / low)
    panels = math.ceil(h / phi.panel)
    unit = (torch.arange(panels).unsqueeze(1) + (_POINTS + 1) / 2).flatten() / panels
    lam = low * (h * unit).exp()
    weights = h / panels * (_WEIGHTS / 2).repeat(panels) * (phi.kappa(lam) - 1) * lam**2
    integral = (weights.view(-1, *[1] * std.ndim) / (variance + lam.view(-1, *[1] * std.ndim) ** 2)).sum(0)
    gain = ((variance + end**2) / (variance + start**2)).sqrt() * (-integral).exp()
    return gain, ((variance + end**2) * -torch.expm1(-2 * integral)).sqrt()


def one_step(
    tableau: Tableau, i: int, y: Tensor, history: Iterable[Tensor], noise: Tensor | float, denoiser: Denoise
) -> Tensor:
    """The state at ``lams[i + 1]`` by row i from any y and history (newest first), corrected where the table corrects.

    Args:
        noise: of this step, standard normal.
        denoiser: ``denoiser(y, lam) -> x0``, called once if the row is corrected, at the level that the table tells it.
    """
    history = list(history)
    base = tableau.r[i] * y + tableau.b[i] * noise
    end = weighted_sum(base, tableau.c[i].tolist(), history)
    if tableau.corrector is None or i + 1 == tableau.nfe or not tableau.corrector[i].any():
        return end
    lam, told = tableau.lams[i + 1].to(y.dtype), tableau.told[i + 1].to(y.dtype)
    newest = history_of(tableau, end, denoiser(end, told), lam)
    return weighted_sum(base, tableau.corrector[i].tolist(), [newest, *history])


def history_of(tableau: Tableau, y: Tensor, x0: Tensor, lam: Tensor) -> Tensor:
    """What the table's history holds for an evaluation."""
    return x0 if tableau.history == "x0" else (y - x0) / lam


def one_step_w2(data: Gaussian, solver: Solver, lams: Tensor) -> Tensor:
    """The error each step makes by itself: the 2-Wasserstein distance of the step's result to the exact law.

    Row i is applied to exact states at ``lams[i]`` and the levels before it, jointly distributed as the solver's own
    SDE (`step_scales`) or ODE has them: for an ODE solver the distance is that to the exact flow, root mean square. A
    row that is corrected is so here too. The step into 0 returns a mean, and misses the spread of what is left.
    """
    tableau = solver.tableau(lams)
    states = _exact_states(data, step_scales(solver, tableau), tableau.lams)
    levels = zip(states[:-1], tableau.told, tableau.lams[:-1], strict=True)
    h = [history_of(tableau, y, data(y, told), lam) for y, told, lam in levels]
    noise = BasisNoise(len(states[0]), data.mean)
    ends = [one_step(tableau, i, states[i], h[i::-1], noise.step(i), data) for i in range(tableau.nfe)]
    return _distances(data, ends, tableau.lams)


def accumulated_w2(data: Gaussian, tableau: Tableau) -> Tensor:
    """The error of a run up to each level: the 2-Wasserstein distance of the states that the denoiser is given, and of
    the last, to the exact law. The start is exact."""
    states: list[Tensor] = []
    start = data.mean.repeat(tableau.nfe + 2, *[1] * data.mean.ndim)
    start[1] += data.marginal_std(tableau.lams[0])
    noise = BasisNoise(len(start), data.mean)
    end = sample(data, tableau, start, noise=noise, callback=lambda i, lam, y, x0: states.append(y))
    return _distances(data, [*states[1:], end], tableau.lams)


def denoiser_error_left(data: Gaussian, tableau: Tableau) -> Tensor:
    """What an error of the denoiser leaves in the result, by the call it is made in: root mean square over coordinates
    for an error of 1 in each.

    Noise makes a run forget: the more of it, the less is left of what a network did wrong at high noise levels, and the
    more depends on the last calls.
    """
    calls = 0

    def denoiser(y: Tensor, lam: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        x0 = data(y, lam)
        x0[calls] += 1  # row 0 stays without an error
        return x0

    start = data.mean.repeat(tableau.nfe + 1, *[1] * data.mean.ndim)
    end = sample(denoiser, tableau._replace(b=torch.zeros_like(tableau.b)), start)
    return (end[1:] - end[0]).square().flatten(1).mean(1).sqrt()


def _exact_states(data: Gaussian, scales: Sequence[NoiseScale], lams: Tensor) -> list[Tensor]:
    """Exact y at each level, as coefficients in the basis of `BasisNoise`: mean, start, noise of each step."""
    noise = BasisNoise(len(lams) + 1, data.mean)
    y = data.mean + data.marginal_std(lams[0]) * noise.initial()
    states = [y]
    for i, (start, end) in enumerate(zip(lams[:-1].tolist(), lams[1:].tolist(), strict=True)):
        gain, spread = gaussian_kernel(scales[i], data.std, start, end)
        y = data.mean + gain * (y - data.mean) + spread * noise.step(i)
        states.append(y)
    return states


def _distances(data: Gaussian, ends: Sequence[Tensor], lams: Tensor) -> Tensor:
    """W2 of states in `BasisNoise`'s basis at ``lams[1:]`` to their exact laws."""
    errors = []
    for y, lam in zip(ends, lams[1:], strict=True):
        std = (y[1:] - y[0]).square().sum(0).sqrt()
        errors.append(w2(y[0], std, data.mean, data.marginal_std(lam)))
    return torch.tensor(errors, dtype=torch.float64)
