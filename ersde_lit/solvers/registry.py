"""Registry of solvers, grids and samplers by name."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from ersde_lit.errors import UserError
from ersde_lit.names import TABLES
from ersde_lit.solvers import grids
from ersde_lit.solvers.adams import DEIS, IPNDM
from ersde_lit.solvers.ddim import DDIM
from ersde_lit.solvers.default import Default, Noisy
from ersde_lit.solvers.dpm_solver import DPMSolverPP, SDEDPMSolverPP
from ersde_lit.solvers.ersde import ERSDE
from ersde_lit.solvers.grids import Grid
from ersde_lit.solvers.heun import Heun
from ersde_lit.solvers.sa_solver import SASolver
from ersde_lit.solvers.sampler import Sampler, TableSampler
from ersde_lit.solvers.saved import SavedTables, learned, read_tables
from ersde_lit.solvers.tableau import Solver
from ersde_lit.solvers.unipc import UniPC

SOLVERS: dict[str, Callable[..., Solver]] = {
    "er_sde": ERSDE,
    "euler": DDIM,  # of the probability flow ODE in lam: the same steps
    "ddim": DDIM,
    "ddpm": partial(DDIM, eta=1.0),
    "dpm++2m": DPMSolverPP,
    "dpm++2m_heun": partial(DPMSolverPP, solver_type="heun"),
    "dpm++3m": partial(DPMSolverPP, order=3),
    "sde_dpm++2m": SDEDPMSolverPP,
    "unipc2": UniPC,
    "unipc3": partial(UniPC, order=3),
    "sa": SASolver,
    "ipndm": IPNDM,
    "deis": DEIS,
}

# Those that are no one table.
SAMPLERS: dict[str, Callable[..., Sampler]] = {"default": Default, "noisy": Noisy, "heun": Heun}

GRIDS: dict[str, Callable[..., Any]] = {
    "edm": grids.edm,
    "log_uniform": grids.log_uniform,
    "poly_exponential": grids.poly_exponential,
    "vp_linear": grids.vp_linear,
    "vp_cosine": grids.vp_cosine,
    "vp_discrete": grids.vp_discrete,
    "iddpm": grids.iddpm,
}


def solver(name: str, **options: Any) -> Solver:
    """The solver of that name; options are its fields, e.g. ``solver("er_sde", order=2, noise_scale="ode")``."""
    return _with_options("solver", SOLVERS, name, options)()


def grid(name: str, **options: Any) -> Grid:
    """The grid of that name, n calls -> lams, with any of its parameters changed, e.g. ``grid("edm", rho=5)``."""
    return _with_options("grid", GRIDS, name, options)


def sampler(name: str, grid: Grid | None = None, add_mean: bool = False, **options: Any) -> Sampler:
    """The solver of that name on a grid, or "default", or "heun", whose two-call loop is no table.

    Without a grid it is `grids.edm`, or the default's own; `add_mean` is that of `TableSampler`. A name that ends in
    .tables is a file of them.
    """
    if name.endswith(TABLES):
        if grid is not None or options or add_mean:
            raise UserError(f"{name} has rows and noise levels of its own, and no options")
        return learned(name)
    found = _with_options("sampler", {**SOLVERS, **SAMPLERS}, name, options)
    given = {} if grid is None else {"grid": grid}
    if name not in SAMPLERS:
        return TableSampler(found(), **given, add_mean=add_mean)
    if add_mean:
        raise UserError(f"add_mean is for solvers with a table, not for {name}")
    return found(**given)


def as_sampler(choice: Sampler | Solver | str | Path | None) -> Sampler:
    """Sampler from a sampler, a solver (on the EDM grid, saved tables on their own) or a name; None is `Default`.

    A path is a file of tables.

    Raises:
        ValueError: an unknown name, or something else.
    """
    if isinstance(choice, Path):
        return read_tables(choice).sampler
    if choice is None or isinstance(choice, str):
        return sampler("default" if choice is None else choice)
    if isinstance(choice, type) or not isinstance(choice, Solver | Sampler):
        raise UserError(f"{choice!r} is no sampler, solver or name of one")
    if isinstance(choice, SavedTables):
        return choice.sampler
    return TableSampler(choice) if isinstance(choice, Solver) else choice


def _with_options(
    kind: str, table: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]
) -> Callable[..., Any]:
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}, choose from {', '.join(table)}")
    known = [p for p in signature(table[name]).parameters if p not in ("n", "grid")]
    for option in options:
        if option not in known:
            raise UserError(f"{kind} {name} has no option {option!r}, only {', '.join(known)}")
    return partial(table[name], **options)
