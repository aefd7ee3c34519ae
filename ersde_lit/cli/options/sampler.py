"""Options of the sampler: solver, noise levels, NFE."""

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from ersde_lit.cli.parser import options_of, read_inline
from ersde_lit.errors import UserError
from ersde_lit.names import CARRIED, GRIDS, MAX_STEPS, SAMPLERS, SOLVERS, TABLES
from ersde_lit.renamed import hint

if TYPE_CHECKING:
    from ersde_lit.solvers import Sampler, SavedTables

PRESETS = {"fast": 8, "balanced": 20, "best": 50, "noisy": 20}  # NFE
CHOSEN = (None, "default", "noisy")  # solvers whose options are chosen by NFE
OF_SOLVER = ("order", "noise_scale", "corrector", "nodes", "relative", "paper", "eta", "churn", "add_mean")
OF_GRID = ("rho", "sigma_min", "sigma_max")
IN_PYTHON = {"sigma_min": "lam_min", "sigma_max": "lam_max"}  # what `solvers.grids` calls them
NOT_OF_ER_SDE = {"eta": "ddim", "churn": "heun"}  # the solver that has the option
NOT_OF_PAPER = ("corrector", "nodes", "relative")


@dataclass(frozen=True)
class SamplerOptions:
    """How to sample.

    Args:
        preset: fast, balanced or best: 8, 20 or 50 network calls an image by the default sampler; noisy: 20 by the
            noisy one.
        nfe: network calls an image, 20 if not given (heun makes an odd number: one less where this is even).
        solver: default (chosen by NFE; er_sde if one of its options is given), noisy (for weak networks), er_sde, ddim,
            ddpm, dpm++2m, dpm++2m_heun, dpm++3m, sde_dpm++2m, unipc2, unipc3, sa, ipndm, deis or heun; also with
            options, as in er_sde:order=2:noise_scale=power:1.5; a file of learned tables, NAME.tables; or carried, the
            tables in the checkpoint. If not given: carried where there is a table of this NFE, else default.
        order: number of x0 values a step; of er_sde, ipndm, deis.
        noise_scale: of er_sde: ode, sde, er_sde_1 .. er_sde_5, power:P (sigma^P), eta:NAME:S (sigma^(1-S) NAME^S), or
            window:STRENGTH:LOW:HIGH:WIDTH (noise between two noise levels alone).
        corrector: of er_sde: the order of its corrector; none if not given.
        nodes: of er_sde: the variable in which x0 is a polynomial: lam (sigma), log, or s for asinh(sigma / s).
        relative: of er_sde: s is relative to the noise level of each step.
        paper: of er_sde: the published algorithm, to reproduce published numbers.
        eta: of ddim: 0 is deterministic, 1 is ancestral DDPM.
        churn: of heun: EDM's S_churn.
        add_mean: adds the first x0 to the start, which as pure noise lacks the data's mean, as default does; not of
            ipndm, deis and heun.
        grid: noise levels: edm (if not given), log_uniform, poly_exponential, vp_linear, vp_cosine, vp_discrete, iddpm,
            or uniform_t, equal steps in the time of the model's process; also with options, as in edm:rho=5.
        rho: of the grid: larger moves steps to small noise levels.
        sigma_min: of the grid: its last noise level above 0.
        sigma_max: of the grid: its first noise level.
    """

    preset: Literal["fast", "balanced", "best", "noisy"] | None = None
    nfe: PositiveInt | None = None
    solver: str | None = None
    order: PositiveInt | None = None
    noise_scale: str | None = None
    corrector: PositiveInt | None = None
    nodes: Literal["lam", "log"] | PositiveFloat | None = None
    relative: bool = False
    paper: bool = False
    eta: NonNegativeFloat | None = None
    churn: NonNegativeFloat | None = None
    add_mean: bool = False
    grid: str | None = None
    rho: PositiveFloat | None = None
    sigma_min: PositiveFloat | None = None
    sigma_max: PositiveFloat | None = None

    def __post_init__(self) -> None:
        self._unfold("solver", (*SAMPLERS, *SOLVERS, CARRIED), (*OF_SOLVER, "grid", *OF_GRID))
        self._unfold("grid", (*GRIDS, "uniform_t"), OF_GRID)
        given = [field.name for field in fields(self)[1:] if getattr(self, field.name) != field.default]
        if self.preset and given:
            raise UserError(f"--preset {self.preset} sets all options of the sampler: leave it or --{given[0]} out")
        if self.nfe and self.nfe > MAX_STEPS:
            raise UserError(f"--nfe {self.nfe}: at most {MAX_STEPS}")
        if is_table(self.solver) and (beside := [name for name in given if name not in ("nfe", "solver")]):
            raise UserError(f"--solver {self.solver} has rows and noise levels of its own: leave --{beside[0]} out")
        for name in given:
            if self.solver == "noisy" and name in OF_SOLVER:
                raise UserError(f"--solver noisy is chosen by --nfe alone: leave --{name} out, or take --solver er_sde")
            if self.solver in CHOSEN and name in NOT_OF_ER_SDE:
                raise UserError(f"--{name} is an option of {NOT_OF_ER_SDE[name]}: add --solver {NOT_OF_ER_SDE[name]}")
            if self.paper and name in NOT_OF_PAPER:
                raise UserError(f"the published algorithm has no {name}: leave --{name} or --paper out")

    def _unfold(self, option: str, known: tuple[str, ...], its_options: tuple[str, ...]) -> None:
        """Parses a text like NAME:option=value and moves its options to their fields."""
        text = getattr(self, option)
        if text is None or text.endswith(TABLES):
            return
        name, own = read_inline(option, text)
        if name not in known:
            raise UserError(f"--{option} {text}: choose from {', '.join(known)}")
        for key in own:
            if key not in its_options:
                raise UserError(f"--{option} {text}: no option {key!r}, only {', '.join(its_options)}{hint(key)}")
            if key in self._given((key,)):
                raise UserError(f"--{option} {text}: {key} is given twice")
        typed = options_of(f"{option} {text}", SamplerOptions, {option: name, **own}) if own else None
        for key in own:
            object.__setattr__(self, key, getattr(typed, key))
        object.__setattr__(self, option, name)

    def sampler(self, denoiser: Any, carried: "SavedTables | None" = None) -> tuple["Sampler", dict[str, Any]]:
        """Makes the sampler for this denoiser, and names it by options that no longer depend on "default" or a preset.

        Args:
            carried: the tables in the denoiser's checkpoint.

        Raises:
            UserError: solver, options, grid and denoiser do not fit together.
        """
        from ersde_lit.solvers import TableSampler, default, grids, noisy, registry

        nfe = PRESETS[self.preset] if self.preset else self.nfe or 20
        of_solver, of_grid = self._given(OF_SOLVER), self._given(OF_GRID)
        solver = "noisy" if self.preset == "noisy" else self.solver
        plain = solver is None and not (self.preset or of_solver or of_grid or self.grid)
        if is_table(self.solver) or (plain and carried is not None and nfe in carried.tables):
            return self._saved(denoiser, nfe, carried)
        if solver in CHOSEN and not of_solver:
            choice = as_options(noisy(nfe) if solver == "noisy" else default(nfe))
        else:
            choice = {"solver": "er_sde" if solver in CHOSEN else solver, **of_solver, "grid": "edm"}
        if self.grid:
            choice = {key: value for key, value in choice.items() if key not in OF_GRID} | {"grid": self.grid}
        choice = choice | of_grid
        given = {IN_PYTHON.get(name, name): choice[name] for name in OF_GRID if name in choice}
        if choice["grid"] != "uniform_t":
            noise_levels: grids.Grid = registry.grid(choice["grid"], **given)
        elif given:
            raise UserError("--grid uniform_t follows the model's process: leave --rho, --sigma_min, --sigma_max out")
        else:
            low, high = denoiser.process.t_range
            noise_levels = partial(grids.uniform_t, lam_of_t=denoiser.process.lam, t_min=low, t_max=high)
        options = {name: choice[name] for name in OF_SOLVER if name in choice}
        sampler = registry.sampler(choice["solver"], noise_levels, **options)
        if isinstance(sampler, TableSampler):
            sampler.table(denoiser, nfe)  # raises now rather than when sampling
        return sampler, {"nfe": sampler.calls(nfe), **choice}

    def _saved(self, denoiser: Any, nfe: int, carried: "SavedTables | None") -> tuple["Sampler", dict[str, Any]]:
        """As `sampler`, of tables in a file or in the checkpoint."""
        from ersde_lit.solvers import read_tables

        name = self.solver or CARRIED
        tables = carried if name == CARRIED else read_tables(name)
        if tables is None:
            raise UserError(f"--solver {CARRIED}: the checkpoint carries no tables (`export --tables` puts them there)")
        try:
            tables.sampler.table(denoiser, nfe)
        except UserError as error:
            raise UserError(f"--solver {name}: {error}") from None
        return tables.sampler, {"nfe": nfe, "solver": name}

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {n: value for n in names if (value := getattr(self, n)) is not None and value is not False}


def is_table(solver: str | None) -> bool:
    """Whether a solver is a file of tables, or the one in the checkpoint, with noise levels of its own."""
    return solver is not None and (solver == CARRIED or solver.endswith(TABLES))


# Options that an option replaces, where the others are taken from samples by `--like`.
REPLACES = {
    "preset": tuple(field.name for field in fields(SamplerOptions)),
    "solver": OF_SOLVER,
    "grid": OF_GRID,
    "nodes": ("relative", "paper"),
    "relative": ("paper",),
    "corrector": ("paper",),
    "paper": NOT_OF_PAPER,
}


def as_options(sampler: Any) -> dict[str, Any]:
    """A sampler of a registered solver on a registered grid, such as that of `solvers.default`, as options."""
    from ersde_lit.solvers import registry

    name = next(name for name, made in registry.SOLVERS.items() if type(sampler.solver) is made)
    changed = {f.name: value for f in fields(sampler.solver) if (value := getattr(sampler.solver, f.name)) != f.default}
    grid, given = (next(k for k, made in registry.GRIDS.items() if made is sampler.grid.func), sampler.grid.keywords)
    of_grid = {option: given[key] for option in OF_GRID if (key := IN_PYTHON.get(option, option)) in given}
    return {"solver": name, **changed, "add_mean": sampler.add_mean, "grid": grid, **of_grid}
