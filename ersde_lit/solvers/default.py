"""Samplers chosen for users who choose none: the default, and one with much noise for weak networks."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ersde_lit.solvers import grids
from ersde_lit.solvers.ersde import ERSDE
from ersde_lit.solvers.grids import Grid, check_nfe
from ersde_lit.solvers.loop import Callback, Denoise
from ersde_lit.solvers.sampler import Noise, Sampler, TableSampler


def default(nfe: int) -> TableSampler:
    """Default sampler of a number of calls: order 2, nearly an ODE solver, from a start that is given the data's mean.

    ER-SDE of order 2 with nodes min(2.4 - 6 / nfe, 1.68 + 1 / nfe), at least 1, relative to each step, on EDM's grid of
    rho 20 - 1.25 nfe, at least 9. From 6 calls on it adds 0.6 of the reverse SDE's noise, but above lam = 5 alone.

    The grid's last level above 0 is 2.5 / nfe^3, at least EDM's 0.002. Down there x0 is known already: with few calls
    one at 0.002 is lost, and mixtures of Gaussians come out with up to twice the error. Its first is 0.8 nfe^2, 45 to
    80 (below 4 calls 20): small images do better from 20 with few calls, but a large one's first modes, whose standard
    deviation grows with the number of pixels, are then lost.

    A run starts from N(0, lam_max^2), not from noisy data, whose mean and largest variances it lacks. On image-like
    data that alone leaves other samplers an error that no number of calls mends. Here the mean is added (`with_mean`),
    which also lets few calls start at lower levels; noise at high levels forgets the rest, where it costs no accuracy.

    The table below is for exact denoisers. A network's own errors are mended by noise at low levels, which costs calls:
    where a network is weak compare `noisy`.

    Chosen on four Gaussian spectra and mixtures fitted to digits, Fashion-MNIST and emoji, whose denoisers are exact,
    and up to 10 calls on networks of the first two as well; a fifth spectrum was held out: tools/results/laws.md. Exact
    2-Wasserstein error on 16 Gaussian modes with std 1 to 0.01, the others on EDM's own grid, by calls:

        calls                       6      8     10      20       50
        this default              .062   .021   .011   .0031    .0010
        er_sde_5, nodes 2         .10   .030   .017   .0039    .0012
        order 3 + corrector 3     .46    .23   .090   .0069   4.4e-4
        published order 3         .52    .33    .21    .037   4.6e-3
        DEIS-3                    .19   .047   .014   .0042   5.4e-4
        UniPC-2                   .23    .30    .27    .046    .0025
        SDE-DPM-Solver++(2M)      .18    .18    .25     .15     .023
    """
    check_nfe(nfe)
    noise = "window:0.6:5:10000:1" if nfe > 5 else "ode"
    nodes = round(max(1.0, min(2.4 - 6 / nfe, 1.68 + 1 / nfe)), 2)
    lam_max = min(80.0, max(45.0, 0.8 * nfe**2)) if nfe > 3 else 20.0
    grid = _grid(nfe, lam_max, rho=max(9.0, 20 - 1.25 * nfe))
    return TableSampler(ERSDE(2, noise, nodes=nodes, relative=True), grid, add_mean=True)


def noisy(nfe: int) -> TableSampler:
    """Sampler for weak networks: with much noise, which mends what a network gets wrong, and careful steps.

    ER-SDE of order 2 with nodes 0.6 + 0.04 nfe (at most 2) relative to each step, the data's mean added to the start,
    and, from 6 calls on, 0.5 + nfe / 20 (at most 1.5) of the reverse SDE's noise above lam = 30000 / nfe^5 (at most
    0.3; 0.009 at 20 calls), on EDM's grid of rho 10 from 0.2 nfe^2, 25 to 80, to the default's last level. Chosen on a
    small Fashion-MNIST network: tools/results/README.md. Where the denoiser is exact it is far behind `default`.
    """
    check_nfe(nfe)
    strength, low = min(1.5, round(0.5 + nfe / 20, 2)), min(0.3, 3e4 / nfe**5)
    noise = f"window:{strength}:{low:.3g}:10000:1" if nfe > 5 else "ode"
    nodes = min(2.0, round(0.6 + 0.04 * nfe, 2))
    grid = _grid(nfe, lam_max=min(80.0, max(25.0, 0.2 * nfe**2)), rho=10.0)
    return TableSampler(ERSDE(2, noise, nodes=nodes, relative=True), grid, add_mean=True)


def _grid(nfe: int, lam_max: float, rho: float) -> Grid:
    """EDM's grid to a last level that has something left to find: the fewer the calls, the higher."""
    lam_min = max(0.002, 2.5 / nfe**3)
    return partial(grids.edm, lam_min=round(lam_min, 4), lam_max=round(lam_max, 1), rho=rho)


@dataclass(frozen=True)
class Default(Sampler):
    """``default(nfe)`` as a sampler class, for YAML, callbacks and sweeps; `grid`, if given, replaces its grid."""

    grid: Grid | None = None
    choice = staticmethod(default)

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoise, noise: Noise, nfe: int, labels: Tensor | None = None, callback: Callback | None = None
    ) -> Tensor:
        chosen = self.choice(nfe)
        return replace(chosen, grid=self.grid or chosen.grid)(denoiser, noise, nfe, labels, callback)


class Noisy(Default):
    """``noisy(nfe)`` as a sampler class."""

    choice = staticmethod(noisy)
