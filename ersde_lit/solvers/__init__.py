"""Solvers: noise scales, grids, tables, the one loop that runs them, seeded noise, samplers and analytic oracles.

    lams -> solver.tableau(lams) -> sample(denoiser, tableau, y, noise=noise) -> y at lams[-1]

or all at once: ``default(nfe)(denoiser, SeededNoise(seeds, shape), nfe)``. No file here knows a network.
"""

from . import grids, oracles, registry
from .adams import DEIS, IPNDM
from .ddim import DDIM
from .dpm_solver import DPMSolverPP, SDEDPMSolverPP
from .ersde import ERSDE
from .heun import Heun
from .loop import NFECounter, sample
from .noise import SeededNoise
from .noise_scale import NoiseScale, custom, eta, noise_scale, power, window
from .sa_solver import SASolver
from .sampler import Sampler, TableSampler, default
from .tableau import Solver, Tableau, check_lams
from .unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "DPMSolverPP",
    "Heun",
    "NFECounter",
    "NoiseScale",
    "SASolver",
    "SDEDPMSolverPP",
    "Sampler",
    "SeededNoise",
    "Solver",
    "TableSampler",
    "Tableau",
    "UniPC",
    "check_lams",
    "custom",
    "default",
    "eta",
    "grids",
    "noise_scale",
    "oracles",
    "power",
    "registry",
    "sample",
    "window",
]
