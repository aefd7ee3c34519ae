"""Quadrature of the coefficients of the exact ER-SDE table, to 1e-13 for any smooth noise scale."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ersde_lit.solvers.noise_scale import NoiseScale

MOST_PANELS = 1000  # what is steeper, memory would not hold
_POINTS, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(32))


def lagrange_integrals(
    noise_scale: NoiseScale, start: Tensor, end: Tensor, nodes: Tensor, u: Callable[[Tensor], Tensor]
) -> Tensor:
    """Weights of x0 at the nodes when x0 is the polynomial in u(lam) through them, for n steps at once:

        c_j = Integral_{ln l_t}^{ln l_s} kappa(l) phi(l_t) / phi(l) L_j(u(l)) d ln l

    Args:
        noise_scale: gives kappa and phi.
        start, end: (n,) l_s and l_t, both ends of each step, l_s > l_t > 0.
        nodes: (n, k) where the Lagrange basis function L_j is 0 or 1, distinct in a row.
        u: of (n, ...) lams, elementwise and monotonic; may differ from row to row.

    Returns:
        (n, k) weights, which sum to ``1 - phi(l_t) / phi(l_s) = 1 - r`` where kappa is that of phi and smooth.
    """
    h = (start / end).log()
    panels = min(MOST_PANELS, max(1, math.ceil(float(h.detach().max()) / noise_scale.panel)))
    unit = (torch.arange(panels).unsqueeze(1) + (_POINTS + 1) / 2).flatten() / panels
    weights = (_WEIGHTS / 2).repeat(panels) / panels
    x = h.unsqueeze(1) * unit  # ln(l / l_t)
    lam = end.unsqueeze(1) * x.exp()

    log_g_end = noise_scale.log_g(end).unsqueeze(1)
    kernel = noise_scale.kappa(lam) * (log_g_end - noise_scale.log_g(lam) - x).exp() * weights * h.unsqueeze(1)
    return (kernel.unsqueeze(1) * lagrange_basis(u(nodes), u(lam))).sum(-1)


def lagrange_basis(nodes: Tensor, at: Tensor) -> Tensor:
    """(n, k, q): the k Lagrange basis functions on `nodes` (n, k), at the points `at` (n, q)."""
    basis = []
    for j in range(nodes.shape[1]):
        others = torch.cat([nodes[:, :j], nodes[:, j + 1 :]], dim=1).unsqueeze(2)
        basis.append(((at.unsqueeze(1) - others) / (nodes[:, j, None, None] - others)).prod(1))
    return torch.stack(basis, dim=1)
