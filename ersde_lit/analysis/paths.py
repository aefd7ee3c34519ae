"""Errors of solvers step by step on any denoiser, against a fine solution along the same noise.

The reference follows the ODE or SDE that a solver approximates (`step_scales`) in many substeps a step. A solver is
given the reference's states and x0 at the nodes, takes one step, and is compared with where the reference went:

- Without noise this is the distance to the flow of the probability-flow ODE.
- With noise both are driven by the same Brownian path. Were x0 constant, a step's noise would be ``b z`` with a z that
  is a known sum of the substeps' noise: that z the solver is given. So the error is that of the path, the root mean
  square over noise and data; it vanishes with the step, and needs one path a seed. It is at least the distance in law
  (`analysis.one_step_w2`), which it exceeds where x0 answers to noise within a step as no solver of one call can know.

The step into 0 is left out: below the last level there is no reference.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ersde_lit.analysis.steps import history_of, one_step, step_scales
from ersde_lit.errors import UserError
from ersde_lit.solvers import NoiseScale, SeededNoise, Solver, Tableau, exponential, sample
from ersde_lit.solvers.loop import Denoise, StepNoise
from ersde_lit.solvers.oracles import Mixture
from ersde_lit.tf32 import tf32

Advance = Callable[[], object]


class Start(NamedTuple):
    """Initial batch: y [B, ...] at the first level, the noise of the substeps, labels for the denoiser."""

    y: Tensor
    noise: StepNoise
    labels: Tensor | None = None


class PathErrors(NamedTuple):
    """Root mean square over batch and pixels, (N,) float64, NaN for the step into 0.

    Attributes:
        one_step: of each step by itself, from the reference's states.
        accumulated: of a run from the same start, at the end of each step: of the states that the denoiser is given.
    """

    one_step: Tensor
    accumulated: Tensor


class Fine(NamedTuple):
    """The levels a reference visits: ``lams[nodes[i]]`` is level i of the grid."""

    lams: Tensor
    nodes: list[int]


def refine(lams: Tensor, substeps: int, levels: Tensor | None = None) -> Fine:
    """Each step between positive levels cut into `substeps` of equal ratio; 0 is left out.

    For a denoiser of discrete `levels` the cuts move to levels, fewer where there are not so many.
    """
    nodes, fine = [0], lams[:1].tolist()
    positive = lams[lams > 0]
    for start, end in pairwise(positive):
        cuts = start * (end / start) ** (torch.arange(1, substeps, dtype=torch.float64) / substeps)
        if levels is not None:
            known = levels.to(cuts)
            cuts = known[(cuts.log().unsqueeze(1) - known.log()).abs().argmin(1)].unique().flip(0)
            cuts = cuts[(cuts < start) & (cuts > end)]
        fine += [*cuts.tolist(), float(end)]
        nodes.append(len(fine) - 1)
    return Fine(torch.tensor(fine, dtype=torch.float64), nodes)


def path_errors(
    denoiser: Denoise,
    solvers: Mapping[str, Solver],
    lams: Tensor,
    starts: Iterable[Start],
    substeps: int = 16,
    advance: Advance = lambda: None,
) -> dict[str, PathErrors]:
    """Errors of each solver on the grid `lams` (N+1,), from all `starts` together.

    The reference's own error falls as ``1 / substeps^3`` without noise and as ``1 / substeps`` with it. Solvers of the
    same ODE or SDE share one. A batch costs ``calls_of(...)`` calls of the denoiser.

    Args:
        denoiser: ``denoiser(y, lam) -> x0``, with ``labels=`` where a start has labels.
        advance: called after each call of the denoiser by a reference.

    Raises:
        ValueError: there is no step between two positive levels.
        FloatingPointError: as `sample`.
    """
    if int((lams > 0).sum()) < 2:
        raise UserError("paths need a step between two noise levels above 0: raise nfe to 2 or more")
    fine = refine(lams, substeps, getattr(denoiser, "levels", None))
    references = _references(solvers, lams, fine)
    totals = {name: torch.zeros(2, len(lams) - 1, dtype=torch.float64) for name in solvers}
    count = 0
    with torch.inference_mode(), tf32(False):
        for start in starts:
            count += start.y.numel()
            known = denoiser if start.labels is None else partial(denoiser, labels=start.labels)
            for powers, names in references.items():
                path = _follow(known, fine, powers, start, advance)
                for name in names:
                    totals[name] += _squared_errors(known, solvers[name].tableau(lams), path)
    rms = {name: (total / count).sqrt() for name, total in totals.items()}
    steps = torch.arange(len(lams) - 1) < len(fine.nodes) - 1
    return {name: PathErrors(*torch.where(steps, both, math.nan)) for name, both in rms.items()}


def spread_mixture() -> Mixture:
    """Six Gaussians in eight dimensions, std 0.32 to 0.02, centres half a unit apart: an oracle that is not linear."""
    generator = torch.Generator().manual_seed(0)
    std = torch.logspace(-0.5, -1.7, 48, dtype=torch.float64)[torch.randperm(48, generator=generator)]
    mean = 0.5 * torch.randn(6, 8, dtype=torch.float64, generator=generator)
    return Mixture(torch.full((6,), 1 / 6, dtype=torch.float64), mean, std.view(6, 8))


def mixture_starts(data: Mixture, lams: Tensor, seeds: Sequence[int], batch_size: int) -> Iterator[Start]:
    """Exact states at the first level: data and the seeds' noise, float64."""
    generator = torch.Generator().manual_seed(0)
    for k in range(0, len(seeds), batch_size):
        part = seeds[k : k + batch_size]
        noise = SeededNoise(part, (data.mean.shape[1],), dtype=torch.float64)
        yield Start(data.draw(len(part), generator) + float(lams[0]) * noise.initial(), noise)


def network_starts(
    denoiser: Any, lams: Tensor, seeds: Sequence[int], labels: Tensor | None, batch_size: int
) -> Iterator[Start]:
    """Where samplers start with these seeds and labels, on the denoiser's device; float64, so that rounding does not
    hide small errors (the network keeps its own dtype)."""
    device = next(denoiser.parameters()).device
    for k in range(0, len(seeds), batch_size):
        noise = SeededNoise(seeds[k : k + batch_size], denoiser.image_shape, device, torch.float64)
        chosen = None if labels is None else labels[k : k + batch_size].to(device)
        yield Start(float(lams[0]) * noise.initial(), noise, chosen)


def calls_of(solvers: Mapping[str, Solver], lams: Tensor, substeps: int, levels: Tensor | None = None) -> int:
    """Calls of the denoiser that the references of `path_errors` make for each batch."""
    fine = refine(lams, substeps, levels)
    return len(_references(solvers, lams, fine)) * (len(fine.lams) - 1)


class _Path(NamedTuple):
    """A reference: y at the positive levels, x0 at all of them but the last, the noise of each step between."""

    y: list[Tensor]
    x0: list[Tensor]
    noise: list[Tensor | float]

    def step(self, i: int) -> Tensor:
        noise = self.noise[i]
        return noise if isinstance(noise, Tensor) else torch.zeros_like(self.y[i])  # where the reference draws none


class _Brownian:
    """The noise of the substeps, summed up as it is drawn: ``sums[k]`` is the standard normal noise of step k."""

    def __init__(self, noise: StepNoise, tableau: Tableau, nodes: Sequence[int]):
        self.noise = noise
        self.sums: list[Tensor | float] = [0.0] * (len(nodes) - 1)
        self._of_step: list[tuple[int, float]] = []
        for k, (first, last) in enumerate(pairwise(nodes)):
            kept = tableau.r[first:last].flip(0).cumprod(0).roll(1)  # of the noise of a substep, at the step's end
            kept[0] = 1
            weights = tableau.b[first:last] * kept.flip(0)
            self._of_step += [(k, w) for w in (weights / weights.norm().clamp(min=1e-300)).tolist()]

    def step(self, i: int) -> Tensor:
        z = self.noise.step(i)
        k, weight = self._of_step[i]
        self.sums[k] = self.sums[k] + weight * z
        return z


def _references(solvers: Mapping[str, Solver], lams: Tensor, fine: Fine) -> dict[tuple[float, ...], list[str]]:
    """The names of the solvers of each ODE or SDE, which is told by p of ``phi = lam^p`` on each substep."""
    references = defaultdict(list)
    for name, solver in solvers.items():
        references[_powers(step_scales(solver, solver.tableau(lams)), fine)].append(name)
    return dict(references)


def _powers(scales: Sequence[NoiseScale], fine: Fine) -> tuple[float, ...]:
    """p on each substep: that with which phi = lam^p adds the noise that the step's own phi adds."""
    powers: list[float] = []
    for scale, first, last in zip(scales, fine.nodes[:-1], fine.nodes[1:], strict=False):
        part = fine.lams[first : last + 1]
        powers += (1 + scale.step_log_g(part) / part.log().diff()).tolist()
    return tuple(round(p, 12) for p in powers)


def _follow(denoiser: Denoise, fine: Fine, powers: Sequence[float], start: Start, advance: Advance) -> _Path:
    steps = len(powers)
    # With noise a higher order gains nothing, and polynomials in ln lam above order 2 are not stable.
    orders = exponential.ramp(steps, 3 if max(powers) == 1 else 2, down=False)
    tableau = exponential.multistep(fine.lams, orders, powers=powers)
    brownian = _Brownian(start.noise, tableau, fine.nodes)
    kept = set(fine.nodes)
    y_at, x0_at = [], []

    def keep(i: int, lam: Tensor, y: Tensor, x0: Tensor) -> None:
        advance()
        if i in kept:
            y_at.append(y.clone())
            x0_at.append(x0.to(y.dtype, copy=True))

    end = sample(denoiser, tableau, start.y, noise=brownian, callback=keep)
    return _Path([*y_at, end], x0_at, brownian.sums)


def _squared_errors(denoiser: Denoise, tableau: Tableau, path: _Path) -> Tensor:
    """(2, N): one step, and accumulated, each summed over batch and pixels; 0 for the step into 0."""
    totals = torch.zeros(2, tableau.nfe, dtype=torch.float64)
    lams = tableau.lams.to(path.y[0].dtype)
    x0s = path.x0  # at the levels of the states
    if tableau.calls is not None:
        x0s = [denoiser(y, told.to(y.dtype)) for y, told in zip(path.y[:-1], tableau.calls, strict=False)]
    h = [history_of(tableau, y, x0, lam) for y, x0, lam in zip(path.y, x0s, lams, strict=False)]
    states: list[Tensor] = []
    end = sample(denoiser, tableau, path.y[0], noise=path, callback=lambda i, lam, y, x0: states.append(y))
    states.append(end)
    for i, exact in enumerate(path.y[1:]):
        step = one_step(tableau, i, path.y[i], h[i::-1], path.noise[i], denoiser)
        totals[0, i] = (step - exact).double().square().sum()
        totals[1, i] = (states[i + 1] - exact).double().square().sum()
    return totals
