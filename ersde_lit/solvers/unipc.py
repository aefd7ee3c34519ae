"""UniPC, a predictor-corrector of any order: Zhao et al. 2023, https://arxiv.org/abs/2302.04867."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import exponential
from ersde_lit.solvers.checks import is_integer
from ersde_lit.solvers.tableau import Tableau, check_lams


@dataclass(frozen=True)
class UniPC:
    """UniP-p as predictor and UniC-p as corrector (Algorithms 2 and 1 of the paper), in data prediction.

    The paper's ``B(h) sum_m a_m D_m / r_m`` matches all moments of `exponential` that its nodes can, p for UniP and
    p + 1 for UniC, and then B(h) cancels: UniPC is the exponential Adams method. Only where there are two nodes, in
    UniP-2 and UniC-1, does its code take M_1 = B(h) / 2 for the exact value, and only there do the variants differ.
    With "bh2" UniP-2 is DPM-Solver++(2M, "midpoint").

    Attributes:
        order: p, at least 1; 2 with guidance, 3 without is the paper's advice. The first steps have less.
        variant: "bh2", B(h) = 1 - e^-h, or "bh1", B(h) = h, which overshoots on long steps.
        lower_order_final: the last steps are of order .., 3, 2, 1, as published. A last step to 0 is always of order 1.
    """

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if not is_integer(self.order, 1):
            raise UserError(f"order of UniPC must be an integer of at least 1, not {self.order!r}")
        if self.variant not in ("bh1", "bh2"):
            raise UserError(f'variant of UniPC must be "bh1" or "bh2", not {self.variant!r}')

    def tableau(self, lams: Tensor) -> Tableau:
        """The table for `lams`, (N+1,), descending, with its corrector."""
        lams = check_lams(lams)
        orders = exponential.ramp(len(lams) - 1, self.order, down=self.lower_order_final)
        return exponential.multistep(lams, orders, moments=self._moments, corrector_orders=[p + 1 for p in orders])

    def _moments(self, z: float, count: int) -> list[float]:
        m = exponential.moments(z, count)
        if count == 2:
            m[1] = (z if self.variant == "bh1" else m[0]) / 2
        return m
