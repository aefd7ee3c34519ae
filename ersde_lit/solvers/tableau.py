"""Tableau: the table of coefficients that defines a linear sampler, and the protocol of solvers that make one.

Throughout `solvers`, ``lam = sigma / alpha`` is the noise level of ``y = x / alpha = x0 + lam * eps``, in which VP, VE
and flow models are the same problem. It is NOT the lambda of DPM-Solver, half a log-SNR: theirs is ``-ln lam``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ersde_lit.errors import UserError


class Tableau(NamedTuple):
    """A sampler with N steps, ready for `sample`: float64 CPU tensors throughout.

    ``y_{i+1} = r_i y_i + sum_j c_ij h_{i-j} + b_i z_i``, where h is the denoised x0, or the slope d.

    Attributes:
        lams: (N+1,) noise levels, descending; the last may be 0.
        r: (N,) what is kept of the state.
        c: (N, k) weights of the history, newest first; a row at the start uses only what exists, the rest is 0.
        b: (N,) standard deviation of the noise added.
        corrector: (N, m) or None. ``corrector[i, j]`` multiplies ``h_{i+1-j}`` and replaces row i's ``c`` once the
            denoiser was called at ``lam_{i+1}``: the state there is recomputed, with the same noise, before the next
            step. A row of zeros means that the step is not corrected.
        history: what h is: "x0", or "d" for ``d = (y - x0) / lam``.
        calls: (N,) the noise levels that the denoiser is told, or None where they are those of the states,
            ``lams[:-1]``. Learned samplers tell it others; LD3 (https://arxiv.org/abs/2405.15506) introduced it.
    """

    lams: Tensor
    r: Tensor
    c: Tensor
    b: Tensor
    corrector: Tensor | None = None
    history: Literal["x0", "d"] = "x0"
    calls: Tensor | None = None

    @property
    def nfe(self) -> int:
        """Number of denoiser calls, which is the number of steps."""
        return len(self.r)

    @property
    def told(self) -> Tensor:
        """(N,) the noise levels that the denoiser is told: `calls`, or those of the states."""
        return self.lams[:-1] if self.calls is None else self.calls


@runtime_checkable
class Solver(Protocol):
    """What each family of samplers is: a frozen dataclass of its options with this one method.

    Its types are Tensor and Tableau. They are not written as annotations because jsonargparse would then ask every
    solver that YAML names for the very same ones.
    """

    def tableau(self, lams: Any, /) -> Any:
        """The table for the noise levels `lams`, (N+1,), descending; computed once, on the host, in float64."""
        ...


def check_lams(lams: Tensor) -> Tensor:
    """`lams` as a float64 CPU tensor; ValueError unless finite, descending, two or more, and only the last 0."""
    lams = torch.as_tensor(lams, dtype=torch.float64, device="cpu").detach()
    if lams.ndim != 1 or len(lams) < 2:
        raise UserError(f"lams must hold at least two noise levels in one dimension, not shape {tuple(lams.shape)}")
    valid = lams.isfinite() & (lams > 0)
    valid[-1] |= lams[-1] == 0
    valid[1:] &= lams.diff() < 0
    if not valid.all():
        i = int(valid.int().argmin())
        raise UserError(
            "lams must be finite, positive and strictly descending, only the last may be 0; "
            f"level {i} is {lams[i]:.6g}" + (f" after {lams[i - 1]:.6g}" if i else "")
        )
    return lams
