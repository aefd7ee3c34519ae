"""Tableau: the table of coefficients that defines a linear sampler, and the protocol of solvers that make one.

Throughout `solvers`, ``lam = sigma / alpha`` is the noise level of ``y = x / alpha = x0 + lam * eps``, in which VP, VE
and flow models are the same problem. It is NOT the lambda of DPM-Solver, half a log-SNR: theirs is ``-ln lam``.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ersde_lit.errors import UserError

SAME_LEVEL = 1e-4  # relative; flow times of float32 are this exact where lam is 1000


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


def with_mean(tableau: Tableau) -> Tableau:
    """The table for a start of pure noise: the first x0 is also added to the first state, at no further call.

    The noisy data's state at lam has their mean m and standard deviation sqrt(lam^2 + s^2); the start, lam z, has
    neither. On Gaussian data x0(lam z) = m + s^2 / (lam^2 + s^2) (lam z - m): it brings m back up to a share of
    s^2 / lam^2, and s^2 / lam of the deviation, of which s^2 / (2 lam) is missing. Lin et al. 2023
    (https://arxiv.org/abs/2305.08891) show what a missing mean does to images: their brightness is drawn to the middle.

    Raises:
        ValueError: the history is of slopes, in which x0 cannot be told from the state.
    """
    if tableau.history != "x0":
        raise UserError("the mean is added by tables in x0 alone, not in slopes as those of ipndm and deis")
    c, corrector = tableau.c.clone(), tableau.corrector
    c[0, 0] += tableau.r[0]
    if corrector is not None and corrector[0].any():
        corrector = torch.nn.functional.pad(corrector, (0, max(0, 2 - corrector.shape[1])))
        corrector[0, 1] += tableau.r[0]
    return tableau._replace(c=c, corrector=corrector)


def without_mean(tableau: Tableau) -> Tableau:
    """The table for a start that has the data's mean: of the first step's weights, x0's is such that all add up to 1.

    It undoes `with_mean`, and what a learned table does in its place.
    """
    if tableau.history != "x0":
        return tableau
    c = tableau.c.clone()
    c[0, 0] += 1 - tableau.r[0] - c[0].sum()
    return tableau._replace(c=c)


def as_float64(values: Sequence[float] | Tensor) -> Tensor:
    """Numbers or a tensor as float64 on the CPU, without gradients; moved first, as an Apple GPU has no float64."""
    values = values.detach().cpu() if isinstance(values, Tensor) else values
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def check_lams(lams: Sequence[float] | Tensor) -> Tensor:
    """`lams` as a float64 CPU tensor; ValueError unless finite, descending, two or more, and only the last 0."""
    lams = as_float64(lams)
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
