"""DDIM, with ancestral sampling at eta = 1: Song, Meng & Ermon 2021, https://arxiv.org/abs/2010.02502."""

from dataclasses import dataclass

from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers.checks import is_number
from ersde_lit.solvers.tableau import Tableau, check_lams


@dataclass(frozen=True)
class DDIM:
    """DDIM(eta), equations (12) and (16) of the paper, which in y and lam hold no alpha:

        b = eta l_t sqrt(1 - (l_t / l_s)^2),        y_t = x0 + sqrt(l_t^2 - b^2) (y_s - x0) / l_s + b noise

    eta = 0 is the deterministic DDIM, order-1 ER-SDE with phi = x; eta = 1 is ancestral DDPM with the posterior's
    variance (Ho et al. 2020), order-1 ER-SDE with phi = x^2. In between no phi gives it.

    Attributes:
        eta: amount of noise, in [0, 1]; ValueError outside.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not is_number(self.eta, 0, 1):
            raise UserError(f"eta of DDIM must be in [0, 1], not {self.eta!r}")

    def tableau(self, lams: Tensor) -> Tableau:
        """The table for `lams`, (N+1,), descending; its rows are of order 1."""
        lams = check_lams(lams)
        old, new = lams[:-1], lams[1:]
        b = self.eta * new * (1 - (new / old) ** 2).sqrt()
        r = (new**2 - b**2).sqrt() / old
        return Tableau(lams, r, (1 - r)[:, None], b)
