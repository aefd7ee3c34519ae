"""Rows of full history: theory's, differentiable in levels and noise, and those of any linear sampler."""

from itertools import pairwise

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import NoiseScale, Tableau, sample
from ersde_lit.solvers.quadrature import lagrange_integrals

NODES = 2.0  # s of the variable asinh(lam / s) of theory's rows, in units of the middle of each step


def theory(lams: Tensor, excess: Tensor) -> Tensor:
    """Weights of x0, (N, N), of ER-SDE of order 2 with ``phi = lam^(1 + excess_i)`` on step i, into lam = 0.

    That is ``ERSDE(2, power(1 + excess), nodes=NODES, relative=True)`` with a noise scale of its own for each step.
    Gradients flow to all arguments that ask for them.

    Args:
        lams: (N,) positive levels, descending; the step into 0 from the last of them returns its x0.
        excess: (N-1,) at least 0: 0 is the ODE, 1 the reverse SDE.
    """
    steps = len(lams)
    blocks = []
    for first, last, order in ((0, min(1, steps - 1), 1), (1, steps - 1, 2)):
        if first < last:
            at = torch.stack([lams[first - j : last - j] for j in range(order)], dim=1)
            weights = leaps(at, lams[first + 1 : last + 1], excess[first:last])
            blocks.append(torch.nn.functional.pad(weights, (0, steps - order)))
    return torch.cat([*blocks, torch.eye(steps, dtype=lams.dtype)[:1]])


def leaps(at: Tensor, end: Tensor, excess: Tensor) -> Tensor:
    """Weights (n, k) of the x0 at the levels `at` (n, k), newest first, for steps from ``at[:, 0]`` to `end` (n,)."""
    s = NODES * (at[:, 0] * end).sqrt().unsqueeze(1)
    return lagrange_integrals(_power(excess), at[:, 0], end, at, lambda lam: torch.asinh(lam / s))


def _power(excess: Tensor) -> NoiseScale:
    """``phi = lam^(1 + excess)`` with an exponent for each row of the lams it is asked for."""

    def of_rows(lam: Tensor) -> Tensor:
        return excess.view(-1, *[1] * (lam.ndim - 1))

    return NoiseScale("learned", lambda lam: of_rows(lam) * lam.log(), lambda lam: (1 + of_rows(lam)).expand_as(lam))


def full_history(tableau: Tableau) -> Tableau:
    """The same sampler, call for call, as a table of x0 with full history and without a corrector.

    Every linear sampler is one: the loop is run here on coordinates, in which the start, each x0 and the noise of each
    step are unit vectors, and rows are read off the states that the denoiser is given.

    Raises:
        UserError: noise of earlier steps comes in again, as with noise in a table of slopes d.
    """
    n = tableau.nfe
    unit = torch.eye(1 + 2 * n, dtype=torch.float64).unsqueeze(1)  # start, x0 of each call, noise of each step
    states: list[Tensor] = []

    class Coordinates:
        def step(self, i: int) -> Tensor:
            return unit[1 + n + i]

    end = sample(
        lambda y, lam: unit[1 + len(states)],  # the callback, which comes after, has not counted this call yet
        tableau._replace(calls=None),
        unit[0],
        noise=Coordinates(),
        callback=lambda i, lam, y, x0: states.append(y.clone()),
    )
    path = torch.cat([*states, end])
    r, b = torch.zeros(2, n, dtype=torch.float64)
    c = torch.zeros(n, n, dtype=torch.float64)
    for i, (before, after) in enumerate(pairwise(path)):
        if before[0] != 0:
            r[i] = after[0] / before[0]
        rest = after - r[i] * before
        c[i, : i + 1] = rest[1 : i + 2].flip(0)
        b[i] = rest[1 + n + i]
        if (rest[1 + n : 1 + n + i].abs() > 1e-9).any():
            raise UserError(f"step {i} of this table uses the noise of earlier steps again: learn from another sampler")
    return Tableau(tableau.lams, r, c, b, calls=tableau.calls)
