"""sample: images from a checkpoint. Its arguments are read before torch is imported."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from ersde_lit.cli import fail
from ersde_lit.sampling.output import check_out
from ersde_lit.sampling.seeds import parse_seeds

if TYPE_CHECKING:
    import torch

    from ersde_lit.denoisers import Denoiser
    from ersde_lit.solvers import Sampler

# The names of solvers.registry, written again so that help and typing errors do not wait for torch.
SolverName = Literal[
    "default", "er_sde", "ddim", "ddpm", "dpm++2m", "dpm++2m_heun", "dpm++3m", "sde_dpm++2m", "unipc2", "unipc3", "sa",
    "ipndm", "deis", "heun",
]  # fmt: skip
GridName = Literal[
    "edm", "log_uniform", "poly_exponential", "vp_linear", "vp_cosine", "vp_discrete", "iddpm", "uniform_t"
]


FLAGS = {
    "overwrite": "replace what --out holds, once the new images are complete",
    "trust": "import network classes from outside ersde_lit that the checkpoint names",
}


class Parser(ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SystemExit(fail(f"sample: {message}"))


def run(command: str, arguments: Sequence[str]) -> None:
    parser = Parser(prog=f"python -m ersde_lit {command}", description=(sample.__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file of options")
    parser.add_function_arguments(sample, skip={"overwrite", "trust"})
    for flag, text in FLAGS.items():
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    options = parser.parse_args(list(arguments)).as_dict()
    options.pop("config")
    sample(**options)


def sample(
    ckpt_path: str,
    seeds: str,
    out: str,
    nfe: PositiveInt = 20,
    solver: SolverName = "default",
    order: PositiveInt | None = None,
    noise_scale: str | None = None,
    corrector: PositiveInt | None = None,
    grid: GridName = "edm",
    labels: str | None = None,
    batch_size: PositiveInt = 128,
    device: str = "auto",
    overwrite: bool = False,
    trust: bool = False,
) -> None:
    """Images from a checkpoint, which alone says how: network, weights, preconditioning, image size.

    Args:
        ckpt_path: checkpoint that `fit` wrote.
        seeds: which images, as in 0-499 or 3,7,10-12; image k depends on seed k alone.
        out: a folder for PNGs, or a file ending in .npz (arr_0, arr_1) or .zip (as EDM's data sets).
        nfe: network calls an image (heun makes an odd number: one less where this is even).
        solver: how to sample; default is what suits the NFE best, or er_sde if one of its options is given.
        order: of er_sde, its number of x0 values a step.
        noise_scale: of er_sde: ode, sde, er_sde_1 .. er_sde_5.
        corrector: of er_sde, the order of its corrector; none if not given.
        grid: noise levels; uniform_t takes equal steps in the time of the model's process.
        labels: random (a function of the seed, if nothing is said), all (in turn), or classes as in 3 or 0,1,5-7.
        batch_size: images sampled at a time.
        device: auto, cpu, cuda or cuda:1.
        overwrite: replace what `out` holds, once the new images are complete.
        trust: import network classes from outside ersde_lit that the checkpoint names.
    """
    chosen = parse_seeds(seeds)
    check_out(out, overwrite)

    from ersde_lit.sampling.generate import generate
    from ersde_lit.sampling.images import quantise
    from ersde_lit.sampling.labels import choose_labels
    from ersde_lit.sampling.writers import open_writer
    from ersde_lit.solvers import Heun
    from ersde_lit.training import load

    model = load(ckpt_path, trust=trust)
    denoiser = model.ema_denoiser.to(_device(device))
    options = {"order": order, "noise_scale": noise_scale, "corrector": corrector}
    sampler = _sampler(denoiser, nfe, solver, grid, {k: v for k, v in options.items() if v is not None})
    calls = sampler.calls(nfe) if isinstance(sampler, Heun) else nfe
    picked = choose_labels(labels, chosen, denoiser.num_classes)
    with open(ckpt_path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    meta = {
        "checkpoint": {"path": str(ckpt_path), "sha256": digest},
        "solver": repr(getattr(sampler, "solver", solver)),
        "grid": grid,
        "nfe": calls,
        "labels": labels or "random",
        "batch_size": batch_size,
        "versions": {name: metadata.version(name) for name in ("ersde-lit", "torch")},
    }
    blocks = generate(denoiser, sampler, chosen, nfe, picked, batch_size=batch_size)
    with open_writer(out, chosen, meta, overwrite) as writer, _progress(len(chosen)) as advance:
        for block in blocks:
            writer.write(quantise(block.images), block.labels, block.seeds)
            advance(len(block.seeds))
    print(f"{len(chosen)} images in {out}, of {calls} network calls each")


def _sampler(denoiser: "Denoiser", nfe: int, solver: str, grid: str, options: dict[str, Any]) -> "Sampler":
    from dataclasses import replace
    from functools import partial

    from ersde_lit.solvers import default, grids, registry

    if grid == "uniform_t":
        low, high = denoiser.process.t_range
        noise_levels: grids.Grid = partial(grids.uniform_t, lam_of_t=denoiser.process.lam, t_min=low, t_max=high)
    else:
        noise_levels = registry.grid(grid)
    if solver == "default" and not options:
        return replace(default(nfe), grid=noise_levels)
    return registry.sampler("er_sde" if solver == "default" else solver, noise_levels, **options)


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with images/s and the time left, where standard error is a terminal; calls advance it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[rate]:.0f} images/s"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, rate=0.0)
        yield lambda count: bar.update(task, advance=count, rate=bar.tasks[0].finished_speed or bar.tasks[0].speed or 0)
