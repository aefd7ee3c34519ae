"""ER-SDE solvers of any order and any noise scale, with exact coefficients."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers.checks import is_integer, is_positive
from ersde_lit.solvers.noise_scale import NoiseScale, noise_scale
from ersde_lit.solvers.paper import paper_tableau
from ersde_lit.solvers.quadrature import lagrange_integrals
from ersde_lit.solvers.tableau import Tableau, check_lams


@dataclass(frozen=True)
class ERSDE:
    """Extended reverse-time SDE solver (Cui et al., https://arxiv.org/abs/2309.06169).

    On a step from l_s to l_t the extended reverse-time SDE with noise scale phi has the exact solution

        y_t = r y_s + Integral_{l_t}^{l_s} phi(l_t) phi'(l) / phi(l)^2 x0(l) dl + b z,
        r = phi(l_t) / phi(l_s),        b^2 = l_t^2 - l_s^2 r^2

    of which a solver of order k approximates x0(l) by the polynomial through its last k values (fewer at the start).
    The integral is then taken exactly; the published code takes a one-sided difference for a derivative and a Riemann
    sum for the integral, and ``paper=True`` does as it does, to reproduce published numbers. A step into lam = 0
    returns x0. Order 1 with "ode" is DDIM, with "sde" ancestral DDPM.

    Orders, measured on exact Gaussian data: the rows of an order-k table have order k for phi = x ("ode"). Run from a
    cold start, with one x0 to begin with, orders 3 and above fall to 2 unless a corrector of the same order is on (then
    3). With noise any order k >= 2 is of weak order 2 and strong order 1; a higher order lowers the error's constant.
    The published algorithm's order 3 measures 2, and its Riemann sum ends at slope 1.

    Attributes:
        order: values of x0 in a step, at least 1.
        noise_scale: phi, by name or as a NoiseScale.
        corrector: None, or the number of nodes of a corrector, at least 1. It takes the polynomial through the newly
            evaluated x0 too and steps again with the same noise: no further call of the denoiser.
        nodes: the variable in which x0 is a polynomial: "lam", "log" (ln lam), or a number s > 0 for asinh(lam / s),
            which is ln lam above s and lam below. "log" of order 2 with "ode" is DPM-Solver++(2M) of heun type; above
            order 2 it is unstable with noise (std too large by up to 7 at 10 calls on the EDM grid), which raises.
        relative: s is in units of sqrt(l_s l_t), the middle of each step, so that steps of equal ratio are interpolated
            alike at every noise level.
        paper: the published algorithm, orders 1 to 3; ignores corrector, nodes and relative.

    Raises:
        ValueError: an option out of range, on construction; or in `tableau`, lams at which phi is not valid or between
            which its kappa does not fit it.
    """

    order: int = 3
    noise_scale: str | NoiseScale = "er_sde_5"
    corrector: int | None = None
    nodes: str | float = "lam"
    paper: bool = False
    relative: bool = False

    def __post_init__(self) -> None:
        noise_scale(self.noise_scale)
        if not is_integer(self.order, 1):
            raise UserError(f"order must be an integer of at least 1, not {self.order!r}")
        if self.corrector is not None and not is_integer(self.corrector, 1):
            raise UserError(f"corrector must be None or an integer of at least 1, not {self.corrector!r}")
        if self.paper and self.order > 3:
            raise UserError(
                f"the published algorithm has orders 1 to 3, not {self.order}: take one of these, or leave paper out"
            )
        if self.nodes not in ("lam", "log") and not is_positive(self.nodes):
            raise UserError(f"nodes must be lam, log or a positive number, not {self.nodes!r}")
        if self.relative and self.nodes in ("lam", "log"):
            raise UserError(f"relative nodes need a number, the s of asinh(lam / s), not {self.nodes!r}")

    def tableau(self, lams: Tensor) -> Tableau:
        """The table for `lams`, (N+1,), finite, descending, the last may be 0; float64, in about a millisecond."""
        lams = check_lams(lams)
        phi = noise_scale(self.noise_scale)
        if self.paper:
            return paper_tableau(lams, phi, self.order)

        n = len(lams) - 1
        full = n - int(lams[-1] == 0)  # steps that do not end in 0
        start, end = lams[:full], lams[1 : full + 1]
        change = phi.step_log_g(lams[: full + 1])
        r, b = torch.zeros(2, n, dtype=torch.float64)
        r[:full] = (end / start) * change.exp()
        b[:full] = end * (-torch.expm1(2 * change)).sqrt()
        if self.nodes == "log" and self.order > 2 and b.any():
            raise UserError("log nodes above order 2 are unstable with noise: take nodes lam or a number, or ode")

        c = torch.zeros(n, self.order, dtype=torch.float64)
        c[full:, 0] = 1
        self._interpolate(c[:full], lams, newest=0)
        _check_rows(phi, lams, r, c[:full])
        if self.corrector is None:
            return Tableau(lams, r, c, b)
        corrector = torch.zeros(n, self.corrector, dtype=torch.float64)
        evaluated = corrector[: min(full, n - 1)]  # where a step's end is
        self._interpolate(evaluated, lams, newest=1)
        _check_rows(phi, lams, r, evaluated)
        return Tableau(lams, r, c, b, corrector)

    def _interpolate(self, rows: Tensor, lams: Tensor, newest: int) -> None:
        """Fills row i with the weights of x0 at ``lams[i + newest]`` and as many levels before it as exist and fit."""
        phi = noise_scale(self.noise_scale)
        steps, width = rows.shape
        ramp = min(steps, max(0, width - 1 - newest))  # steps with too few levels behind them, each of its own order
        for first, last in pairwise(sorted({*range(ramp + 1), steps})):
            count = min(width, first + newest + 1)
            start, end = lams[first:last], lams[first + 1 : last + 1]
            nodes = lams[torch.arange(first, last).unsqueeze(1) + newest - torch.arange(count)]
            rows[first:last, :count] = lagrange_integrals(phi, start, end, nodes, self._node_variable(start, end))

    def _node_variable(self, start: Tensor, end: Tensor) -> Callable[[Tensor], Tensor]:
        """u(lam) for lam (n, k), a row of it for each of n steps."""
        if self.nodes == "lam":
            return lambda lam: lam
        if self.nodes == "log":
            return torch.log
        s = float(self.nodes) * ((start * end).sqrt() if self.relative else torch.ones_like(end)).unsqueeze(1)
        return lambda lam: torch.asinh(lam / s)


def _check_rows(phi: NoiseScale, lams: Tensor, r: Tensor, rows: Tensor) -> None:
    """Raises ValueError unless a constant x0 is kept: kappa is not that of phi, or too rough for the quadrature."""
    missed = (r[: len(rows)] + rows.sum(1) - 1).abs()
    wrong = ~(missed <= 1e-9)
    if wrong.any():
        i = int(wrong.int().argmax())
        raise UserError(
            f"noise scale {phi} gives no table: from lam {lams[i]:.6g} to {lams[i + 1]:.6g} a constant x0 is missed by "
            f"{missed[i]:.1g}; its kappa must be d ln phi / d ln lam, and smooth"
        )
