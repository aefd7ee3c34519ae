"""Rows of a table as steps of a scheduler, between which a pipeline calls the model."""

from collections import deque

from torch import Tensor

from ersde_lit.solvers import Tableau
from ersde_lit.solvers.loop import weighted_sum


class Steps:
    """Steps by the rows of a table, one call a step; equal to `sample` up to rounding.

    The corrector adds to the state that is passed, so a pipeline's changes of it (an inpainting mask) are kept.
    """

    def __init__(self, tableau: Tableau):
        self.r, self.c, self.b = tableau.r.tolist(), tableau.c.tolist(), tableau.b.tolist()
        self.lams, self.of_slopes = tableau.lams.tolist(), tableau.history == "d"
        self.corrector = [] if tableau.corrector is None else tableau.corrector.tolist()
        self.history: deque[Tensor] = deque(maxlen=max(len(row) for row in self.c[:1] + self.corrector[:1]))
        self.predicted: Tensor | None = None
        self.i = 0

    @property
    def adds_noise(self) -> bool:
        return self.b[self.i] > 0

    def __call__(self, y: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        """The next state from y and the x0 predicted of it; noise, standard normal, where `adds_noise`."""
        self.history.appendleft((y - x0) / self.lams[self.i] if self.of_slopes else x0)
        if self.predicted is not None and self.corrector and any(self.corrector[self.i - 1]):
            y = y + self._weighted(self.corrector[self.i - 1]) - self.predicted
        self.predicted = self._weighted(self.c[self.i])
        y = self.r[self.i] * y + self.predicted
        if noise is not None:
            y = y.add(noise, alpha=self.b[self.i])
        self.i += 1
        return y

    def _weighted(self, weights: list[float]) -> Tensor:
        newest, *older = self.history
        return weighted_sum(newest * weights[0], weights[1:], older)
