"""Sampling loop for all coefficient tables, and a counter of denoiser calls (NFE)."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ersde_lit.errors import UserError
from ersde_lit.solvers.tableau import Tableau

Denoise = Callable[..., Tensor]
Callback = Callable[[int, Tensor, Tensor, Tensor], object]


class StepNoise(Protocol):
    """Source of the noise of each step: `SeededNoise`, or any object with this method."""

    def step(self, i: int) -> Tensor:
        """Standard normal noise for step i, shaped like the state."""
        ...


def sample(
    denoiser: Denoise,
    tableau: Tableau,
    y: Tensor,
    *,
    noise: StepNoise | None = None,
    mean: Tensor | None = None,
    labels: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Runs `tableau` from y at ``lams[0]`` and returns y at ``lams[-1]``, which is x0 where that is 0.

    Nothing in the loop waits for the device: coefficients are host numbers that travel as kernel arguments, whatever is
    branched on is known before the loop, and a NaN is looked for once, at the end.

    Args:
        denoiser: ``denoiser(y, lam) -> x0``, or ``denoiser(y, lam, labels=labels)`` if labels are given. `lam` is a
            0-dim CPU tensor: a scalar beside tensors of any device, to be branched on without waiting for one.
            Called once a step, nowhere else.
        tableau: from ``solver.tableau(lams)``.
        y: [B, ...] the state ``x / alpha`` at ``lams[0]``, usually ``lams[0] * standard normal``. Its dtype, but at
            least float32, is that of all arithmetic here; the denoiser may return another.
        noise: gives the noise of the steps that add some; None draws from torch's global generator.
        mean: of the noise N in y = x0 + lam N, which broadcasts to y; None: zero. `noise` is N less its mean then.
        labels: handed on to the denoiser.
        callback: called as ``callback(i, lam, y, x0)`` after each evaluation, with the very y that x0 was evaluated at
            (before its correction, if the table has one) and its noise level, which need not be what x0's was told.

    Raises:
        ValueError: an x0 or a step's noise has not the shape of y.
        FloatingPointError: an x0 was not finite; names the first such step and its lam.
    """
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    lams = tableau.lams.to("cpu", y.dtype).unbind()
    told = tableau.told.to("cpu", y.dtype).unbind()
    r, c, b = tableau.r.tolist(), tableau.c.tolist(), tableau.b.tolist()
    corrector = [[]] * len(r) if tableau.corrector is None else tableau.corrector.tolist()
    kept = tableau.r * tableau.lams[:-1] + (tableau.c.sum(1) if tableau.history == "d" else 0)  # of the mean of N
    grown = (tableau.lams[1:] - kept).tolist()
    condition = {} if labels is None else {"labels": labels}
    history: deque[Tensor] = deque(maxlen=max(len(c[0]), len(corrector[0])))
    totals = []

    base = y
    for i, lam in enumerate(lams[: len(r)]):
        x0 = check_shape("x0", denoiser(y, told[i], **condition), y)
        if callback is not None:
            callback(i, lam, y, x0)
        # A copy: the denoiser may reuse its output's memory, as a CUDA graph does.
        h = x0.to(y.dtype, copy=True) if tableau.history == "x0" else (y - x0.to(y.dtype)) / lam
        history.appendleft(h)
        totals.append(h.sum())
        if i and any(corrector[i - 1]):
            y = weighted_sum(base, corrector[i - 1], history)
        base = y * r[i]
        if b[i]:
            z = torch.randn_like(y) if noise is None else check_shape("noise", noise.step(i), y)
            base.add_(z, alpha=b[i])
        if mean is not None:
            base.add_(mean, alpha=grown[i])
        y = weighted_sum(base, c[i], history)

    raise_if_not_finite(totals, lams)
    return y


def check_shape(what: str, value: Tensor, y: Tensor) -> Tensor:
    """`value`; ValueError unless it is shaped as y, where broadcasting would mix images silently."""
    if value.shape != y.shape:
        raise UserError(f"{what} must have the shape of y, {[*y.shape]}, not {[*value.shape]}")
    return value


def raise_if_not_finite(totals: Sequence[Tensor], lams: Sequence[Tensor] | Tensor, calls_a_step: int = 1) -> None:
    """Raises FloatingPointError naming the first step, and its lam, whose sum over x0 is not finite; waits once."""
    finite = torch.stack(list(totals)).isfinite()
    if not finite.all():
        i = int(finite.int().argmin()) // calls_a_step
        raise FloatingPointError(f"the denoiser's output is not finite at step {i} (lam = {float(lams[i]):.6g})")


def weighted_sum(base: Tensor, weights: list[float], history: Iterable[Tensor]) -> Tensor:
    """``base + sum_j weights[j] history[j]``, skipping weights of 0; base stays as it is."""
    total = base
    for weight, h in zip(weights, history, strict=False):
        if weight:
            total = torch.add(base, h, alpha=weight) if total is base else total.add_(h, alpha=weight)
    return total


class NFECounter:
    """A denoiser that counts its calls in `nfe`; other attributes are those of the wrapped denoiser."""

    def __init__(self, denoiser: Denoise):
        self.denoiser = denoiser
        self.nfe = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.nfe += 1
        return self.denoiser(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "denoiser":  # not there yet while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.denoiser, name)
