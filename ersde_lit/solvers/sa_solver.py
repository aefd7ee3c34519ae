"""SA-Solver, stochastic Adams: Xue et al. 2023, https://arxiv.org/abs/2309.05019."""

from dataclasses import dataclass

from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers import exponential
from ersde_lit.solvers.checks import is_integer, is_interval, is_number
from ersde_lit.solvers.tableau import Tableau, check_lams


@dataclass(frozen=True)
class SASolver:
    """SA-Predictor and SA-Corrector (Algorithm 1 of the paper), in data prediction.

    Noise of strength tau is phi = lam^(1 + tau^2): a step is the exponential Adams step of `exponential` with
    p = 1 + tau^2, so that tau = 0 is the ODE and tau = 1 the reverse SDE. Where there are two nodes the published code
    takes M_1 = z / 2 for the exact value, which at tau = 0 makes it UniPC's "bh1", and which overshoots on long steps:
    the exact M_1 stays below 1. Its authors advise orders 3 and 4 with little or no guidance, 2 and 2 with much.

    Attributes:
        predictor_order: number of past x0 used, 1 to 4.
        corrector_order: number of x0 used, the new one included, 1 to 4; 0 for no corrector.
        tau: strength of the noise, at least 0.
        window: (low, high): steps that start at a lam outside it are taken with tau = 0. The default is the published
            code's, t from 0.2 to 0.8 of the linear VP process.
        lower_order_final: the last steps are of order .., 3, 2, 1, as published. A last step to 0 is always of order 1.
    """

    predictor_order: int = 3
    corrector_order: int = 4
    tau: float = 1.0
    window: tuple[float, float] = (0.72, 25.1)
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if not is_integer(self.predictor_order, 1, 4):
            raise UserError(f"predictor_order of SASolver must be 1 to 4, not {self.predictor_order!r}")
        if not is_integer(self.corrector_order, 0, 4):
            raise UserError(f"corrector_order of SASolver must be 0 to 4, not {self.corrector_order!r}")
        if not is_number(self.tau, 0):
            raise UserError(f"tau of SASolver must be finite and at least 0, not {self.tau!r}")
        if not is_interval(self.window):
            raise UserError(f"window of SASolver must be (low, high), not {self.window!r}")

    def tableau(self, lams: Tensor) -> Tableau:
        """The table for `lams`, (N+1,), descending, with its corrector."""
        lams = check_lams(lams)
        steps = len(lams) - 1
        low, high = self.window
        powers = [1 + self.tau**2 * (low <= lam <= high) for lam in lams[:-1].tolist()]
        # A corrector has one node more than history, at both ends of the run.
        corrected = [min(self.corrector_order, p + 1) for p in self._ramp(steps, self.corrector_order)]
        return exponential.multistep(
            lams,
            self._ramp(steps, self.predictor_order),
            moments=_moments,
            powers=powers,
            corrector_orders=corrected,
        )

    def _ramp(self, steps: int, order: int) -> list[int]:
        return exponential.ramp(steps, order, down=self.lower_order_final)


def _moments(z: float, count: int) -> list[float]:
    m = exponential.moments(z, count)
    if count == 2:
        m[1] = z / 2
    return m
