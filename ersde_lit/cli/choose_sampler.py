"""Options that say how to sample: solver, noise levels, number of calls. Nothing here waits for torch to be read."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from ersde_lit.errors import UserError

if TYPE_CHECKING:
    from ersde_lit.solvers import Sampler

# The names of solvers.registry, written again so that help and typing errors do not wait for torch.
SolverName = Literal[
    "default", "er_sde", "ddim", "ddpm", "dpm++2m", "dpm++2m_heun", "dpm++3m", "sde_dpm++2m", "unipc2", "unipc3", "sa",
    "ipndm", "deis", "heun",
]  # fmt: skip
GridName = Literal[
    "edm", "log_uniform", "poly_exponential", "vp_linear", "vp_cosine", "vp_discrete", "iddpm", "uniform_t"
]
PRESETS = {"fast": 8, "balanced": 20, "best": 50}  # NFE, with the default sampler there
OF_SOLVER = ("order", "noise_scale", "corrector", "nodes", "relative", "paper", "eta", "churn")
OF_GRID = ("rho", "lam_min", "lam_max")
NOT_OF_ER_SDE = {"eta": "ddim", "churn": "heun"}  # whose they are
NOT_OF_PAPER = ("corrector", "nodes", "relative")
MOST_CALLS = 2**15 - 1  # the steps that `solvers.noise` has noise for, written again as above


@dataclass(frozen=True)
class SamplerOptions:
    """How to sample.

    Args:
        preset: fast, balanced or best: 8, 20 or 50 network calls an image by the default sampler.
        nfe: network calls an image, 20 if nothing is said (heun makes an odd number: one less where this is even).
        solver: default is what suits the NFE best, or er_sde if one of its options is given.
        order: number of x0 values a step; of er_sde, ipndm, deis.
        noise_scale: of er_sde: ode, sde, er_sde_1 .. er_sde_5, power:P (lam^P), eta:NAME:S (lam^(1-S) NAME^S), or
            window:STRENGTH:LOW:HIGH:WIDTH (noise between two noise levels alone).
        corrector: of er_sde: the order of its corrector; none if not given.
        nodes: of er_sde: the variable in which x0 is a polynomial: lam, log, or s for asinh(lam / s).
        relative: of er_sde: s counts from the noise level of each step.
        paper: of er_sde: the published algorithm, to reproduce published numbers.
        eta: of ddim: 0 is deterministic, 1 is ancestral DDPM.
        churn: of heun: EDM's S_churn.
        grid: noise levels, EDM's if nothing is said; uniform_t takes equal steps in the time of the model's process.
        rho: of the grid: larger moves steps to small noise levels.
        lam_min: of the grid: its last noise level above 0.
        lam_max: of the grid: the noise level it starts at.
    """

    preset: Literal["fast", "balanced", "best"] | None = None
    nfe: PositiveInt | None = None
    solver: SolverName = "default"
    order: PositiveInt | None = None
    noise_scale: str | None = None
    corrector: PositiveInt | None = None
    nodes: Literal["lam", "log"] | PositiveFloat | None = None
    relative: bool = False
    paper: bool = False
    eta: NonNegativeFloat | None = None
    churn: NonNegativeFloat | None = None
    grid: GridName | None = None
    rho: PositiveFloat | None = None
    lam_min: PositiveFloat | None = None
    lam_max: PositiveFloat | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self)[1:] if getattr(self, field.name) != field.default]
        if self.preset and given:
            raise UserError(f"--preset {self.preset} says all about how to sample: leave it or --{given[0]} out")
        if self.nfe and self.nfe > MOST_CALLS:
            raise UserError(f"--nfe {self.nfe} is more than there is noise for: at most {MOST_CALLS}")
        for name in given:
            if self.solver == "default" and name in NOT_OF_ER_SDE:
                raise UserError(f"--{name} is of {NOT_OF_ER_SDE[name]}: add --solver {NOT_OF_ER_SDE[name]}")
            if self.paper and name in NOT_OF_PAPER:
                raise UserError(f"the published algorithm has no {name}: leave --{name} or --paper out")

    def sampler(self, denoiser: Any) -> tuple["Sampler", dict[str, Any]]:
        """What was chosen, for this denoiser, and the choice as these options and their values.

        Those make the same sampler whatever becomes of "default" or a preset.

        Raises:
            ValueError: solver, options, grid and denoiser do not go together.
        """
        from ersde_lit.solvers import TableSampler

        nfe = PRESETS[self.preset] if self.preset else self.nfe or 20
        of_solver, of_grid = self._given(OF_SOLVER), self._given(OF_GRID)
        if self.solver == "default" and not of_solver:
            choice = named_default(nfe)
        else:
            name = "er_sde" if self.solver == "default" else self.solver
            choice = {"solver": name, **of_solver, "grid": "edm"}
        if self.grid or of_grid:
            choice = {key: value for key, value in choice.items() if key not in OF_GRID}
            choice |= {"grid": self.grid or "edm", **of_grid}
        sampler = _make(choice, denoiser)
        if isinstance(sampler, TableSampler):
            sampler.solver.tableau(sampler.lams(denoiser, nfe))  # raises now rather than when sampling
        return sampler, {"nfe": sampler.calls(nfe), **choice}

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, False)}


# What an option takes the place of, where the rest of a choice is kept with samples that `--like` names.
REPLACES = {
    "preset": tuple(field.name for field in fields(SamplerOptions)),
    "solver": OF_SOLVER,
    "grid": OF_GRID,
    "nodes": ("relative", "paper"),
    "relative": ("paper",),
    "corrector": ("paper",),
    "paper": NOT_OF_PAPER,
}


def named_default(nfe: int) -> dict[str, Any]:
    """`solvers.default(nfe)` as options."""
    from ersde_lit.solvers import default, registry

    sampler = default(nfe)
    solver: Any = sampler.solver
    name = next(name for name, made in registry.SOLVERS.items() if type(solver) is made)
    values = {field.name: getattr(solver, field.name) for field in fields(solver)}
    changed = {field.name: values[field.name] for field in fields(solver) if values[field.name] != field.default}
    function, changes = getattr(sampler.grid, "func", sampler.grid), getattr(sampler.grid, "keywords", {})
    grid = next(name for name, made in registry.GRIDS.items() if made is function)
    return {"solver": name, **changed, "grid": grid, **changes}


def _make(choice: Mapping[str, Any], denoiser: Any) -> "Sampler":
    from functools import partial

    from ersde_lit.solvers import grids, registry

    of_solver, of_grid = ({name: choice[name] for name in names if name in choice} for names in (OF_SOLVER, OF_GRID))
    if choice["grid"] == "uniform_t":
        if of_grid:
            raise UserError(f"--{next(iter(of_grid))} is not for --grid uniform_t, which follows the model's process")
        low, high = denoiser.process.t_range
        noise_levels: grids.Grid = partial(grids.uniform_t, lam_of_t=denoiser.process.lam, t_min=low, t_max=high)
    else:
        noise_levels = registry.grid(choice["grid"], **of_grid)
    return registry.sampler(choice["solver"], noise_levels, **of_solver)
