"""The published ER-SDE algorithm, equal to its code to rounding.

Kept for reproducing published numbers and as an oracle. It differs from the exact solver in three ways: derivatives of
x0 are one-sided differences, without the correction that would make the second one exact for quadratics; the integrals
are left Riemann sums of 100 points; a variance below 1e-6, in units of lam, is set to 0.

Source: https://github.com/QinpengCui/ER-SDE-Solver at commit 25ca6c2.
"""

import torch
from torch import Tensor

from ersde_lit.solvers.noise_scale import NoiseScale
from ersde_lit.solvers.tableau import Tableau

_POINTS = 100
_LEAST_VARIANCE = 1e-6


def paper_tableau(
    lams: Tensor, phi: NoiseScale, order: int, points: int = _POINTS, least_variance: float = _LEAST_VARIANCE
) -> Tableau:
    """The published solver of order 1, 2 or 3 on checked `lams` (N+1,); a step into 0 is of order 1, without noise.

    Other programs' copies of it take other `points` and `least_variance`.
    """
    n = len(lams) - 1
    full = n - int(lams[-1] == 0)
    start, end = lams[:full], lams[1 : full + 1]
    phi.step_log_g(lams[: full + 1])

    r, b = torch.zeros(2, n, dtype=torch.float64)
    r[:full] = phi.phi(end) / phi.phi(start)
    variance = end**2 - start**2 * r[:full] ** 2
    b[:full] = torch.where(variance < least_variance, 0, variance).sqrt()

    c = torch.zeros(n, order, dtype=torch.float64)
    c[:, 0] = 1 - r
    if order == 1:
        return Tableau(lams, r, c, b)

    step = ((start - end) / points).unsqueeze(1)
    inner = end.unsqueeze(1) + step * torch.arange(points)
    ratio = step * phi.phi(end).unsqueeze(1) / phi.phi(inner)
    # Row i: the weights of D_i = (x0_i - x0_{i-1}) / (l_i - l_{i-1}), and what a step adds of it.
    difference = torch.zeros(full, order, dtype=torch.float64)
    difference[1:, :2] = torch.tensor([1.0, -1.0]) / start.diff().unsqueeze(1)
    c[:full] += (end - start + ratio.sum(1)).unsqueeze(1) * difference
    if order == 3:
        # And of (D_i - D_{i-1}) / ((l_i - l_{i-2}) / 2).
        second = difference[2:] - difference[1:-1].roll(1, dims=1)
        weight = (end - start) ** 2 + 2 * (ratio * (inner - start.unsqueeze(1))).sum(1)
        c[2:full] += (weight[2:] / (start[2:] - start[:-2])).unsqueeze(1) * second
    return Tableau(lams, r, c, b)
