"""How far samplers miss laws whose denoiser is known exactly: a perfect network, so the error is the sampler's alone.

    python tools/bench_laws.py          # about an hour on one CPU core; cells that are there are kept

Every sampler on every grid, from pure noise as in use, on

- Gaussian spectra: exact 2-Wasserstein distance (W2), without Monte Carlo;
- low-rank mixtures fitted to digits, Fashion-MNIST and emoji (in their 256 leading directions): Frechet distance in
  classifier features of draws to the law, less that of as many exact draws, which is also given with its spread.

Writes tools/results/laws.{csv,md}. An error below its floor counts as the floor: W2 of 0.002, or the spread.
"""

import csv
import math
import os
import platform
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from emoji64 import Rotations
from jsonargparse import auto_cli
from torch import Tensor

from ersde_lit.analysis.mixture import fit_mixture
from ersde_lit.data import Digits, Emoji, FashionMNIST, ImageDataModule
from ersde_lit.metrics import Features, FrechetDistance, Recipe, classifier, statistics
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import ERSDE, SeededNoise, Solver, TableSampler, default, grids
from ersde_lit.solvers.grids import Grid
from ersde_lit.solvers.oracles import Gaussian, output_law, w2
from ersde_lit.solvers.registry import solver

RESULTS = Path(__file__).parent / "results"
DEFAULT = "default(nfe)"
MEAN = "ER-SDE 2, nodes 2, relative, mean added"
OURS: dict[str, Solver] = {
    MEAN: ERSDE(2, nodes=2.0, relative=True),
    "ER-SDE 2, nodes 2, relative": ERSDE(2, nodes=2.0, relative=True),
    "ER-SDE 2, much noise": ERSDE(2, "er_sde_3", nodes=2.0, relative=True),
    "ER-SDE 3 + corrector": ERSDE(3, corrector=3),
}
RIVALS: dict[str, Solver] = {
    "ER-SDE 3, published": ERSDE(3, paper=True),
    "DDIM": solver("ddim"),
    "DPM-Solver++(2M)": solver("dpm++2m"),
    "SDE-DPM-Solver++(2M)": solver("sde_dpm++2m"),
    "UniPC-2": solver("unipc2"),
    "UniPC-3": solver("unipc3"),
    "iPNDM-3": solver("ipndm", order=3),
    "iPNDM-4": solver("ipndm"),
    "DEIS-3": solver("deis"),
}
SOLVERS = OURS | RIVALS
GRIDS: dict[str, Grid] = {
    "EDM": grids.edm,
    "EDM, rho 12": partial(grids.edm, rho=12.0),
    "EDM, to 0.02": partial(grids.edm, lam_min=0.02),
    "log-uniform": grids.log_uniform,
    "uniform t": grids.vp_linear,
}

Error = Callable[[TableSampler, int], float]


class Law(NamedTuple):
    """A law: `error` of a sampler at a number of calls; below `floor` errors are not told apart."""

    error: Error
    floor: float
    note: str


def spectrum(std: Tensor, mean: Tensor) -> Law:
    """Exact W2 on N(mean, diag(std^2))."""
    data = Gaussian(mean.double(), std.double())
    zero = torch.zeros_like(data.mean)

    def error(sampler: TableSampler, nfe: int) -> float:
        law = output_law(lambda _, noise: sampler(data, noise, nfe), zero, zero, nfe)
        return w2(*law, data.mean, data.std)

    return Law(error, 0.002, f"{len(std)} modes, std {std[0]:.3g} to {std[-1]:.3g}, |mean| {mean.norm():.3g}")


def mixture(data: ImageDataModule, features: Features, components: int, rank: int, draws: int, kept: int = 0) -> Law:
    """Excess of the Frechet distance on a mixture fitted to the training images, in their `kept` leading directions."""
    images = data.split("train").images.float().flatten(1) / 127.5 - 1
    directions = leading_directions(images, kept) if kept else None
    law = fit_mixture(images if directions is None else images @ directions, components, rank)
    fast, generator = law.to(torch.float32), torch.Generator().manual_seed(0)

    def batches(x: Tensor) -> list[Tensor]:
        pixels = (part.float() if directions is None else part.float() @ directions.T for part in x.split(500))
        return [quantise(part.view(-1, *data.image_shape)) for part in pixels]

    reference = FrechetDistance(statistics(features, batches(law.draw(20_000, generator))))
    exact = torch.tensor(
        [reference(statistics(features, batches(law.draw(draws, generator)))) for _ in range(4)], dtype=torch.float64
    )
    noise = SeededNoise(range(draws), law.mean.shape[1:])

    def error(sampler: TableSampler, nfe: int) -> float:
        return reference(statistics(features, batches(sampler(fast, noise, nfe)))) - exact.mean().item()

    note = (
        f"{len(law.weights)} components of rank {rank} in {law.mean.shape[1]} dimensions, {draws:,} draws; exact draws "
        f"{exact.mean():.3f} ± {exact.std():.3f}; {features.description}"
    )
    return Law(error, exact.std().item(), note)


def leading_directions(images: Tensor, count: int) -> Tensor:
    """(D, count), of the second moments: the mean lies in them."""
    generator = torch.Generator().manual_seed(0)
    basis = images.T @ torch.randn(len(images), count + 44, generator=generator)
    for _ in range(3):
        basis = torch.linalg.qr(images.T @ (images @ basis))[0]
    return basis @ torch.linalg.svd(images @ basis, full_matrices=False)[2].T[:, :count]


def laws(root: str, draws: int) -> dict[str, Callable[[], Law]]:
    """By name; made when called. The default was chosen on those that are not held out."""

    def digits() -> Law:
        return mixture(Digits(), classifier(Digits()), 20, 12, draws)

    def fashion() -> Law:
        data = FashionMNIST(root)
        data.prepare_data()
        return mixture(data, classifier(data), 64, 24, draws)

    def emoji() -> Law:
        data = Emoji(root)
        return mixture(data, classifier(Rotations(data), recipe=Recipe(max_images=40_000)), 14, 64, draws, kept=256)

    def off_centre(std: Tensor, mean: float) -> Law:
        return spectrum(std, torch.cat([torch.tensor([mean]), torch.zeros(len(std) - 1)]))

    return {
        "spectrum": lambda: spectrum(torch.logspace(0, -2, 16), torch.linspace(-0.2, 0.2, 16)),
        "image spectrum": lambda: off_centre(10 * torch.arange(1, 65) ** -1.2, 5.0),
        "steep spectrum": lambda: off_centre(8 * torch.logspace(0, -3, 64), 3.0),
        "digits": digits,
        "Fashion-MNIST": fashion,
        "emoji": emoji,
        "wide spectrum": lambda: off_centre(6 * torch.arange(1, 129) ** -0.8, 8.0),
        "small spectrum (held out)": lambda: off_centre(4 * torch.arange(1, 97) ** -1.0, 4.0),
    }


Key = tuple[str, str, str, int]  # law, sampler, grid, NFE


def main(nfes: list[int] = [5, 6, 8, 10, 15, 20, 30], draws: int = 1000, root: str = "data") -> None:  # noqa: B006
    """All cells that tools/results/laws.csv does not hold yet, then the table.

    Args:
        nfes: denoiser calls.
        draws: of the mixtures, a cell.
        root: where the data sets are.
    """
    file = RESULTS / "laws.csv"
    cells: dict[Key, float] = {}
    if file.is_file():
        with file.open() as old:
            cells = {(r["law"], r["sampler"], r["grid"], int(r["nfe"])): float(r["error"]) for r in csv.DictReader(old)}
    made = {name: cache(make) for name, make in laws(root, draws).items()}
    samplers = [(DEFAULT, "its own"), *((name, grid) for grid in GRIDS for name in SOLVERS)]
    for law, make in made.items():
        for name, grid in samplers:
            for nfe in nfes:
                if (law, name, grid, nfe) not in cells:
                    cells[law, name, grid, nfe] = make().error(build(name, grid, nfe), nfe)
            write(file, cells)
            print(f"{law:26}{name:40}{grid:12}", *(f"{cells[law, name, grid, n]:9.4f}" for n in nfes), flush=True)
    (RESULTS / "laws.md").write_text(report(cells, {name: make() for name, make in made.items()}, nfes))


def build(name: str, grid: str, nfe: int) -> TableSampler:
    return default(nfe) if name == DEFAULT else TableSampler(SOLVERS[name], GRIDS[grid], add_mean=name == MEAN)


def write(file: Path, cells: dict[Key, float]) -> None:
    with file.open("w") as new:
        rows = csv.writer(new, lineterminator="\n")
        rows.writerow(["law", "sampler", "grid", "nfe", "error"])
        rows.writerows([*key, f"{value:.6g}"] for key, value in cells.items())


def report(cells: dict[Key, float], made: dict[str, Law], nfes: list[int]) -> str:
    """One table a law, each sampler on its best grid; and the geometric mean over laws on any one grid."""

    def error(law: str, name: str, grid: str, nfe: int) -> float:
        return max(cells[law, name, grid, nfe], made[law].floor)

    of = {DEFAULT: ["its own"], **{name: [*GRIDS] for name in SOLVERS}}
    best = {
        (law, nfe): min(error(law, name, grid, nfe) for name in RIVALS for grid in GRIDS)
        for law in made
        for nfe in nfes
    }

    def row(name: str, values: list[str]) -> str:
        return f"| {name} | " + " | ".join(values) + " |"

    head = [row("", [f"NFE {nfe}" for nfe in nfes]), "|---|" + "---:|" * len(nfes)]
    lines = [
        "Geometric mean over all laws of a sampler's error, divided by the best rival's on that law's best grid. A "
        "rival best everywhere would have 1. Each on the one grid that is best for it at that NFE.\n",
        *head,
    ]
    for name, on in of.items():
        means = [
            min(math.prod(error(law, name, grid, n) / best[law, n] for law in made) ** (1 / len(made)) for grid in on)
            for n in nfes
        ]
        lines.append(row(name, [f"{mean:.2f}" for mean in means]))
    for law, (_, floor, note) in made.items():
        lines += [f"\n## {law}\n", f"{note}. Floor {floor:.2g}. Each sampler on the best of its grids.\n", *head]
        for name, on in of.items():
            lines.append(row(name, [f"{min(cells[law, name, grid, n] for grid in on):.3f}" for n in nfes]))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ersde-lit", "torch", "scikit-learn"))
    return "\n".join(
        [
            *lines,
            "\nSeeds 0 onwards; grids from 80 to 0.002 if they name no other, uniform t (VP, linear beta) from 152 to "
            "0.01. "
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}.\n",
        ]
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
