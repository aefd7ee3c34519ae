"""DPM-Solver++, deterministic and stochastic, multistep: Lu et al. 2022, https://arxiv.org/abs/2211.01095."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import exponential
from ersde_lit.solvers.checks import is_integer
from ersde_lit.solvers.tableau import Tableau, check_lams

SolverType = Literal["midpoint", "heun"]


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++(2M), Algorithm 2 of the paper, and (3M) as its published code has it.

    With ``D1 = (x0_i - x0_{i-1}) / u`` for the node u of x0_{i-1}, and M_k(h) of `exponential`,

        y_{i+1} = e^-h y_i + M_0 x0_i + w D1,        w = M_0 / 2 ("midpoint") or M_1 ("heun", the exact integral)

    "heun" is order-2 ER-SDE with phi = x and nodes = "log". 3M goes through three nodes with M_1 exact but half of M_2:
    its published D2 is a divided difference, half the second derivative that its weight is made for. So it converges at
    order 2; order-3 ER-SDE with phi = x and nodes = "log" is the one that the derivation means.

    Attributes:
        order: 2 or 3.
        solver_type: "midpoint" or "heun", on steps of order 2.
        lower_order_final: below 15 steps, order 2 on the last but one and 1 on the last. A last step to 0 is always
            of order 1.
    """

    order: int = 2
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if not is_integer(self.order, 2, 3):
            raise UserError(f"order of DPMSolverPP must be 2 or 3, not {self.order!r}")
        _check_solver_type(self.solver_type)

    def tableau(self, lams: Tensor) -> Tableau:
        """The table for `lams`, (N+1,), descending."""
        lams = check_lams(lams)
        steps = len(lams) - 1
        orders = exponential.ramp(steps, self.order, down=self.lower_order_final and steps < 15)
        return exponential.multistep(lams, orders, moments=_MOMENTS[self.solver_type])


@dataclass(frozen=True)
class SDEDPMSolverPP:
    """SDE-DPM-Solver++(2M), from the same paper: as `DPMSolverPP`, with 2h for h (phi = x^2) and fresh noise

        y_{i+1} = e^-2h y_i + M_0(2h) x0_i + w D1 + l_{i+1} sqrt(1 - e^-2h) noise

    Attributes:
        solver_type: "midpoint" or "heun", as in `DPMSolverPP`.
        lower_order_final: below 15 steps, order 1 on the last. A last step to 0 is always of order 1.
    """

    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        _check_solver_type(self.solver_type)

    def tableau(self, lams: Tensor) -> Tableau:
        """The table for `lams`, (N+1,), descending."""
        lams = check_lams(lams)
        steps = len(lams) - 1
        orders = exponential.ramp(steps, 2, down=self.lower_order_final and steps < 15)
        return exponential.multistep(lams, orders, moments=_MOMENTS[self.solver_type], powers=[2.0] * steps)


def _heun(z: float, count: int) -> list[float]:
    m = exponential.moments(z, count)
    if count == 3:
        m[2] /= 2
    return m


def _midpoint(z: float, count: int) -> list[float]:
    m = _heun(z, count)
    if count == 2:
        m[1] = m[0] / 2
    return m


_MOMENTS = {"midpoint": _midpoint, "heun": _heun}


def _check_solver_type(solver_type: str) -> None:
    if solver_type not in _MOMENTS:
        raise UserError(f'solver_type must be "midpoint" or "heun", not {solver_type!r}')
