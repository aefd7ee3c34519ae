"""Solvers: noise scales, grids, tables, the one loop that runs them, seeded noise, samplers and analytic oracles."""

from .loop import NFECounter, sample
from .tableau import Solver, Tableau, check_lams

__all__ = ["NFECounter", "Solver", "Tableau", "check_lams", "sample"]
