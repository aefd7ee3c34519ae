"""Command `analyze`: computes coefficients and errors of solvers, step by step."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jsonargparse.typing import PositiveFloat, PositiveInt

from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.cli.options.sampler import OF_GRID, SamplerOptions, is_table
from ersde_lit.cli.parser import Parser, options_of, read_inline, split
from ersde_lit.errors import UserError, needs_extra
from ersde_lit.files import check_out, check_present, disk_errors, given
from ersde_lit.names import MAX_STEPS
from ersde_lit.sampling.seeds import parse_seeds

if TYPE_CHECKING:
    from torch import Tensor

    from ersde_lit.analysis.paths import PathErrors
    from ersde_lit.analysis.report import Analysis
    from ersde_lit.solvers import SavedTables, Solver, Tableau


@dataclass(frozen=True)
class AnalysisOptions:
    """What is analysed.

    Args:
        out: a folder, or a file that ends in .png; a .csv and a .md with the numbers go beside the picture.
        solvers: those of `sample` but heun, with options of theirs, as in er_sde:order=1,er_sde,dpm++2m,unipc2. Beside
            learned tables, as NAME.tables, all run at the noise levels of these.
        noise_scales: whose coefficients are shown, and with which er_sde runs where it names none of its own.
        nfe: network calls an image, at least 2.
        grid: noise levels, edm if not given; uniform_t, equal steps in the time of the model's process, needs a
            checkpoint.
        rho: of the grid: larger moves steps to small noise levels.
        sigma_min: of the grid: its last noise level above 0.
        sigma_max: of the grid: the noise level it starts at.
        ckpt_path: checkpoint that `fit` wrote, to measure errors on its averaged weights; a mixture if not given.
        seeds: which images to measure on, as in 0-63.
        substeps: of the reference, on each step.
        batch_size: images at a time.
        accelerator: auto, cpu, gpu or cuda.
    """

    out: str
    solvers: str | list[str] = "er_sde,dpm++2m"
    noise_scales: str | list[str] = "ode,er_sde_5,sde"
    nfe: PositiveInt = 10
    grid: str | None = None
    rho: PositiveFloat | None = None
    sigma_min: PositiveFloat | None = None
    sigma_max: PositiveFloat | None = None
    ckpt_path: str | None = None
    seeds: str | int = "0-63"
    substeps: PositiveInt = 16
    batch_size: PositiveInt = 64
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto"


def run(command: str, arguments: Sequence[str]) -> None:
    what = "Coefficients and errors of solvers, step by step."
    parser = Parser(command, what, AnalysisOptions, ModelOptions, skip=["decoder"])
    _, (options, model) = parser.read(arguments)
    analyze(options, model, shlex.join(arguments))


def analyze(options: AnalysisOptions, model: ModelOptions, arguments: str = "") -> "Analysis":
    """Analyses solvers and writes the results; `arguments`, of the command, are kept with the numbers."""
    if options.nfe < 2:
        raise UserError("--nfe 1 is the step to 0 alone, without error: take 2 or more")
    if options.grid == "uniform_t" and options.ckpt_path is None:
        raise UserError("--grid uniform_t takes equal steps in the time of a model: give its --ckpt_path")
    check_present(given(ckpt_path=options.ckpt_path))
    if model.labels is not None and options.ckpt_path is None:
        raise UserError("--labels are for a checkpoint: give its --ckpt_path")
    if options.nfe * options.substeps > MAX_STEPS:
        most = MAX_STEPS // options.nfe
        raise UserError(f"--substeps {options.substeps}: take at most {most} on each of {options.nfe} steps")
    seeds = parse_seeds(str(options.seeds))
    check_out(options.out)
    chosen(options)  # raises now, before torch is imported

    from ersde_lit.analysis.report import MADE_BY, Analysis, Output

    output = Output(options.out)
    denoiser, problem, carried = _denoiser(options, model, seeds)
    solvers, lams = choose_solvers(options, denoiser, carried)
    grid = next((f"{name}'s own" for name in solvers if is_table(name)), options.grid or "edm")
    title = f"Step by step: {grid} grid, λ {lams[0]:.4g} to {lams[lams > 0][-1]:.4g}, NFE {options.nfe}"
    analysis = Analysis(lams, title, problem)
    _exactly(analysis, solvers, split(options.noise_scales))
    for name, error in _measure(options, model, denoiser, solvers, lams, seeds).items():
        _add(analysis, name, _phi(solvers[name]), one_step_rms=error.one_step, rms=error.accumulated)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ersde-lit", "torch"))
    made = f"{f'{MADE_BY} {arguments}'.rstrip()}`; {versions}."
    resolved = [f"Here {name} is {solver}." for name, solver in solvers.items() if name in ("default", "noisy")]
    analysis.notes += [*_notes(options, model, denoiser, problem), *resolved, made]
    draw = None
    try:
        with needs_extra("plot", "the plot"):
            from ersde_lit.analysis.plot import save

            draw = partial(save, analysis)
    except UserError as error:
        print(f"no plot: {error}")
    with disk_errors(options.out):
        output.write(analysis, draw)
    print("\n".join(analysis.summary()))
    print(f"{output.png}, {output.csv.name} and {output.md.name}: {len(solvers)} solvers, NFE {options.nfe}")
    return analysis


def chosen(options: AnalysisOptions) -> dict[str, SamplerOptions]:
    """Options of each named solver, er_sde once for each noise scale; raises UserError for unknown names, and for
    options of the grid beside tables."""
    of_grid = {name: value for name in ("grid", *OF_GRID) if (value := getattr(options, name)) is not None}
    shared = {"nfe": options.nfe, "grid": "edm", **of_grid}
    found = {}
    for entry in split(options.solvers):
        if is_table(entry):
            found[entry] = SamplerOptions(nfe=options.nfe, solver=entry, **of_grid)
            continue
        name, own = read_inline("solvers", entry)
        if name == "heun":
            raise UserError("--solvers heun: it calls the network twice a step and has no table: leave it out")
        if shared_by_all := {"add_mean", *OF_GRID} & own.keys():
            what = "all solvers share one grid and start from exact states"
            raise UserError(f"--solvers {entry}: {what}: leave {min(shared_by_all)} out")
        several = name == "er_sde" and "noise_scale" not in own
        for scale in split(options.noise_scales) if several else [""]:
            choice = {"solver": entry, **shared, **({"noise_scale": scale} if scale else {})}
            found[f"{entry} {scale}".strip()] = options_of(f"solvers {entry}", SamplerOptions, choice, ["preset"])
    if not found:
        raise UserError("there is nothing to analyse: name --solvers, and --noise_scales for er_sde")
    return found


class _FromExactStates(NamedTuple):
    """A learned sampler's tables, for starts that have the data's mean as all others of an analysis do."""

    solver: "Solver"

    def tableau(self, lams: "Tensor", /) -> "Tableau":
        from ersde_lit.solvers.tableau import without_mean

        return without_mean(self.solver.tableau(lams))


def choose_solvers(
    options: AnalysisOptions, denoiser: Any, carried: "SavedTables | None" = None
) -> tuple["dict[str, Solver]", "Tensor"]:
    """Makes the solvers of `chosen` and the grid they share: that of tables, or else adapted to the denoiser.

    Raises:
        UserError: a solver cannot run there, or two files of tables have different grids.
    """
    from ersde_lit.solvers import TableSampler, noise_scale

    for scale in split(options.noise_scales):
        noise_scale(scale)
    found: dict[str, TableSampler] = {}
    for name, choice in chosen(options).items():
        try:
            sampler, _ = choice.sampler(denoiser, carried)
        except UserError as error:
            raise UserError(f"--solvers {name}: {error}") from None
        assert isinstance(sampler, TableSampler)
        found[name] = sampler
    first = next(filter(is_table, found), next(iter(found)))
    lams = found[first].lams(denoiser, options.nfe)
    for name in filter(is_table, found):
        if not lams.equal(found[name].lams(denoiser, options.nfe)):
            raise UserError(f"--solvers: {first} and {name} have different noise levels: analyse one at a time")
    return {n: _FromExactStates(one.solver) if is_table(n) else one.solver for n, one in found.items()}, lams


def _denoiser(
    options: AnalysisOptions, model: ModelOptions, seeds: Sequence[int]
) -> tuple[Any, str, "SavedTables | None"]:
    """Makes the denoiser on which path errors are measured, on its device, names it, and returns its own tables."""
    if options.ckpt_path is None:
        from ersde_lit.analysis.paths import spread_mixture

        return spread_mixture(), "mixture", None
    from ersde_lit.metrics.pooled import with_float64
    from ersde_lit.ranks import Ranks
    from ersde_lit.sampling.labels import labels_of

    module = model.load(options.ckpt_path)
    denoiser: Any = module.ema_denoiser
    labels_of(denoiser, model.labels, seeds[:1])
    return denoiser.to(with_float64(Ranks.start(options.accelerator).device)), "checkpoint", module.tables


def _exactly(analysis: "Analysis", solvers: "dict[str, Solver]", scales: Sequence[str]) -> None:
    """Adds coefficients of noise scales and tables, and exact errors on Gaussian data, to the analysis."""
    from ersde_lit.analysis import steps as exact
    from ersde_lit.analysis.report import phi_name
    from ersde_lit.solvers import ERSDE, noise_scale
    from ersde_lit.solvers.oracles import Gaussian

    data, lams = Gaussian.spectrum(), analysis.lams
    for phi in dict.fromkeys([*scales, *filter(None, map(_phi, solvers.values()))]):
        table = ERSDE(1, phi).tableau(lams)
        noise = {"b": table.b, "b_relative": exact.injected_noise(table)}
        # 1 - phi(l_t) / phi(l_s), the weight of x0: the FEI coefficient of Cui et al. (https://arxiv.org/abs/2309.06169)
        _add(analysis, phi_name(phi), phi, euler_coefficient=1 - table.r, **noise)
        _add(analysis, phi_name(phi), phi, kappa=noise_scale(phi).kappa(lams[:-1]))
    for name, solver in solvers.items():
        table, of = solver.tableau(lams), _phi(solver)
        if of is None:
            _add(analysis, name, of, b=table.b, b_relative=exact.injected_noise(table))
        _add(analysis, name, of, error_left=exact.denoiser_error_left(data, table))
        w2 = exact.accumulated_w2(data, table)
        _add(analysis, name, of, one_step_w2=exact.one_step_w2(data, solver, lams), w2=w2)


def _add(analysis: "Analysis", name: str, phi: str | None, **values: "Tensor") -> None:
    """Adds curves of a noise scale or solver to the analysis, by quantity."""
    from ersde_lit.analysis.report import Curve

    analysis.curves += [Curve(quantity, name, of_steps, phi) for quantity, of_steps in values.items()]


def _phi(solver: "Solver") -> str | None:
    """The name of a solver's noise scale, if it has one."""
    from ersde_lit.solvers import ERSDE

    return str(solver.noise_scale) if isinstance(solver, ERSDE) else None


def _measure(
    options: AnalysisOptions,
    model: ModelOptions,
    denoiser: Any,
    solvers: "dict[str, Solver]",
    lams: "Tensor",
    seeds: Sequence[int],
) -> "dict[str, PathErrors]":
    from rich.progress import Progress

    from ersde_lit.analysis.paths import calls_of, mixture_starts, network_starts, path_errors
    from ersde_lit.progress import console
    from ersde_lit.sampling.labels import labels_of

    if options.ckpt_path is None:
        starts = mixture_starts(denoiser, lams, seeds, options.batch_size)
    else:
        labels = labels_of(denoiser, model.labels, seeds)
        starts = network_starts(denoiser, lams, seeds, labels, options.batch_size)
    batches = -(-len(seeds) // options.batch_size)
    calls = batches * calls_of(solvers, lams, options.substeps, getattr(denoiser, "levels", None))
    shown = options.ckpt_path is not None and console.is_terminal
    with Progress(console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("reference", total=calls)
        advance = partial(bar.update, task, advance=1)
        return path_errors(denoiser, solvers, lams, starts, options.substeps, advance)


def _notes(options: AnalysisOptions, model: ModelOptions, denoiser: Any, problem: str) -> list[str]:
    where = f"the averaged weights of {options.ckpt_path}, seeds {options.seeds}"
    if problem == "mixture":
        where = f"a mixture of six Gaussians in eight dimensions, seeds {options.seeds}"
    elif denoiser.num_classes:
        where += f", labels {'random' if model.labels is None else model.labels}"
    return [
        "Gaussian data: 16 modes, std 1 to 0.01; 2-Wasserstein distances (W2) are exact, without Monte Carlo. One step "
        "alone begins with exact states and history. What is left of a denoiser's error is for an error of 1 in every "
        "coordinate, made in the call at that level.",
        f"RMS, a coordinate or pixel, is measured on {where}, against {options.substeps} substeps of the same "
        "ODE, or of the same SDE along the same Brownian path. A path is more than a law: with noise this error counts "
        "what no solver of one call a step can know, so W2 is what tells solvers of one noise scale apart. The step "
        "into 0 is left out.",
    ]
