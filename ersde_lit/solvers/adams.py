"""iPNDM and DEIS: multistep methods in the slope ``d = (y - x0) / lam``, Zhang & Chen 2023, https://arxiv.org/abs/2204.13902.

The ODE ``dy / dlam = d`` has no linear term, so r = 1 and the weights of a row sum to ``l_t - l_s``; a last step to 0
is of order 1, ``y - l_s d = x0``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import exponential
from ersde_lit.solvers.checks import is_integer
from ersde_lit.solvers.tableau import Tableau, check_lams

# Adams-Bashforth weights for equal steps, newest first.
_ADAMS_BASHFORTH = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


@dataclass(frozen=True)
class IPNDM:
    """Improved PNDM, from the same paper: Adams-Bashforth weights of equal steps, on whatever grid there is.

        y_{i+1} = y_i + (l_{i+1} - l_i) (55 d_i - 59 d_{i-1} + 37 d_{i-2} - 9 d_{i-3}) / 24,        order 1, 2, 3 before

    Order 4 only where steps are equal in lam; on the usual grids it converges at order 2. What is published at few
    calls uses the EDM grid with its end at lam = 0.002, not 0.

    Attributes:
        order: 1 to 4.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if not is_integer(self.order, 1, 4):
            raise UserError(f"order of IPNDM must be 1 to 4, not {self.order!r}")

    def tableau(self, lams: Tensor) -> Tableau:
        """The table for `lams`, (N+1,), descending; its history is d."""
        lams = check_lams(lams)
        c = torch.zeros(len(lams) - 1, self.order, dtype=torch.float64)
        for i, k in enumerate(_orders(lams, self.order, down=False)):
            c[i, :k] = (lams[i + 1] - lams[i]) * torch.tensor(_ADAMS_BASHFORTH[k], dtype=torch.float64)
        return _slope_table(lams, c)


@dataclass(frozen=True)
class DEIS:
    """DEIS with its polynomial in ln lam, the paper's exponential Adams-Bashforth as diffusers has it ("logrho"):

        y_{i+1} = y_i + sum_j c_j d_{i-j},        c_j = Integral_{l_i}^{l_{i+1}} L_j(ln lam) dlam

    with the Lagrange basis L_j at ln l_i, ln l_{i-1}, ..: the weights of `exponential` at z = -h, times l_{i+1}.

    Attributes:
        order: 1 to 4; order 1 is DDIM.
        lower_order_final: below 15 steps, the last are of order .., 3, 2, 1. A last step to 0 is always of order 1.
    """

    order: int = 3
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if not is_integer(self.order, 1, 4):
            raise UserError(f"order of DEIS must be 1 to 4, not {self.order!r}")

    def tableau(self, lams: Tensor) -> Tableau:
        """The table for `lams`, (N+1,), descending; its history is d."""
        lams = check_lams(lams)
        steps = len(lams) - 1
        c = torch.zeros(steps, self.order, dtype=torch.float64)
        for i, k in enumerate(_orders(lams, self.order, down=self.lower_order_final and steps < 15)):
            if k == 1:
                c[i, 0] = lams[i + 1] - lams[i]
                continue
            h = (lams[i] / lams[i + 1]).log().item()
            c[i, :k] = lams[i + 1] * exponential.weights(exponential.moments(-h, k), exponential.nodes(lams, i, i, k))
        return _slope_table(lams, c)


def _orders(lams: Tensor, order: int, *, down: bool) -> list[int]:
    orders = exponential.ramp(len(lams) - 1, order, down=down)
    return orders if lams[-1] > 0 else [*orders[:-1], 1]


def _slope_table(lams: Tensor, c: Tensor) -> Tableau:
    return Tableau(lams, torch.ones_like(lams[1:]), c, torch.zeros_like(lams[1:]), history="d")
