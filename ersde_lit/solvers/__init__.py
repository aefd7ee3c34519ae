"""Solvers: noise scales, grids, coefficient tables, the sampling loop, seeded noise, samplers and analytic oracles.

    lams -> solver.tableau(lams) -> sample(denoiser, tableau, y, noise=noise) -> y at lams[-1]

or all at once: ``default(nfe)(denoiser, SeededNoise(seeds, shape), nfe)``, for weak networks ``noisy(nfe)``, and
``learned("X.tables")`` for a file of learned tables. No file here knows a network.
"""

from ersde_lit.solvers import grids, oracles, registry
from ersde_lit.solvers.adams import DEIS, IPNDM
from ersde_lit.solvers.ddim import DDIM
from ersde_lit.solvers.default import Default, Noisy, default, noisy
from ersde_lit.solvers.dpm_solver import DPMSolverPP, SDEDPMSolverPP
from ersde_lit.solvers.ersde import ERSDE
from ersde_lit.solvers.heun import Heun
from ersde_lit.solvers.loop import NFECounter, sample
from ersde_lit.solvers.noise import SeededNoise
from ersde_lit.solvers.noise_scale import NoiseScale, custom, eta, noise_scale, power, window
from ersde_lit.solvers.sa_solver import SASolver
from ersde_lit.solvers.sampler import Sampler, TableSampler
from ersde_lit.solvers.saved import SavedTables, learned, read_tables, write_tables
from ersde_lit.solvers.tableau import Solver, Tableau, check_lams
from ersde_lit.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "DPMSolverPP",
    "Default",
    "Heun",
    "NFECounter",
    "NoiseScale",
    "Noisy",
    "SASolver",
    "SDEDPMSolverPP",
    "Sampler",
    "SavedTables",
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
    "learned",
    "noise_scale",
    "noisy",
    "oracles",
    "power",
    "read_tables",
    "registry",
    "sample",
    "window",
    "write_tables",
]
