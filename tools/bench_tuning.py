"""What learning a sampler's table brings, part by part, where the denoiser is exact: the error is the sampler's alone.

    python tools/bench_tuning.py                    # hours on one CPU core; cells that are there are kept
    python tools/bench_tuning.py --only [spectrum] --nfes [5]

Cases are those of `bench_laws`: Gaussian spectra, learned and measured by the exact 2-Wasserstein distance; low-rank
mixtures, learned by the energy distance in classifier features to 5,000 exact draws, measured by the excess of the
Frechet distance of fresh draws in the same features, and by the energy distance of their values, which nothing learned.

Appends to tools/results/tuning.csv, so that two may run side by side, and writes tools/results/tuning.md.
"""

import csv
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

import torch
from bench_laws import DEFAULT, GRIDS, RESULTS, SOLVERS, build, leading_directions
from emoji64 import Rotations
from jsonargparse import auto_cli
from torch import Tensor

from ersde_lit.analysis.mixture import fit_mixture
from ersde_lit.data import Digits, Emoji, FashionMNIST, ImageDataModule
from ersde_lit.metrics import Features, FrechetDistance, Recipe, classifier, statistics
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import SeededNoise, Tableau, default, sample
from ersde_lit.solvers.oracles import Gaussian
from ersde_lit.tuning import EnergyDistance, ImageFeatures, Problem, exact_gaussian, tune

FILE = RESULTS / "tuning.csv"
HAND = "best hand-made"
VARIANTS: dict[str, dict[str, Any]] = {
    "grid alone": {"stages": ["grid"]},
    "grid, drift": {"stages": ["grid", "drift"]},
    "grid, drift, noise": {},
    "all but call levels": {"learn": ["levels", "rows", "gain", "noise"]},
    "all, r + sum c = 1 kept": {"learn": ["levels", "rows", "calls", "noise"]},
    "all, without gradients": {"gradients": False},
}


class Case(NamedTuple):
    """What is learned, with which options of `tune`, and how tables are measured: in what was learned, and in else."""

    problem: Problem
    options: dict[str, Any]
    error: Callable[[Tableau], float]
    other: Callable[[Tableau], float]
    note: str


def spectrum(data: Gaussian) -> Case:
    problem = exact_gaussian(data)

    def error(tableau: Tableau) -> float:
        return float(problem.scores(tableau, range(1)))

    note = (
        f"Exact W2; {len(data.std)} modes, std {data.std[0]:.3g} to {data.std[-1]:.3g}, |mean| {data.mean.norm():.3g}"
    )
    return Case(problem, {"batch": 1, "validation": 1, "steps": 600}, error, error, note)


def mixture(data: ImageDataModule, features: Features, components: int, rank: int, kept: int = 0) -> Case:
    images = data.split("train").images.float().flatten(1) / 127.5 - 1
    directions = leading_directions(images, kept) if kept else None
    law = fit_mixture(images if directions is None else images @ directions, components, rank)
    fast, generator = law.to(torch.float32), torch.Generator().manual_seed(0)

    def pixels(x: Tensor) -> Tensor:
        return (x.float() if directions is None else x.float() @ directions.T).view(-1, *data.image_shape)

    def batches(x: Tensor) -> Iterable[Tensor]:
        return [quantise(pixels(part)) for part in x.split(500)]

    judge, draws = ImageFeatures(features), 2000
    reference = FrechetDistance(statistics(features, batches(law.draw(20_000, generator))))
    exact = torch.tensor([reference(statistics(features, batches(law.draw(draws, generator)))) for _ in range(4)])
    bank = law.draw(5000, generator).float()
    with torch.no_grad():
        objective = EnergyDistance(lambda x: judge(pixels(x)), judge(pixels(bank)))
    values = EnergyDistance(lambda x: x, bank)
    noise = SeededNoise(range(draws), law.mean.shape[1:])

    def draw(tableau: Tableau) -> Tensor:
        return sample(fast, tableau, float(tableau.lams[0]) * noise.initial(), noise=noise)

    def error(tableau: Tableau) -> float:
        return reference(statistics(features, batches(draw(tableau)))) - exact.mean().item()

    def other(tableau: Tableau) -> float:
        with torch.no_grad():
            return float(values(draw(tableau), noise, None))

    note = (
        f"{len(law.weights)} components of rank {rank} in {law.mean.shape[1]} dimensions; {draws:,} draws, exact ones "
        f"{exact.mean():.4f} ± {exact.std():.4f}; {features.description}"
    )
    return Case(Problem(fast, law.mean.shape[1:], objective), {"steps": 400}, error, other, note)


def cases(root: str) -> dict[str, Callable[[], Case]]:
    def fashion() -> Case:
        data = FashionMNIST(root)
        data.prepare_data()
        return mixture(data, classifier(data), 64, 24)

    def emoji() -> Case:
        data = Emoji(root)
        return mixture(data, classifier(Rotations(data), recipe=Recipe(max_images=40_000)), 14, 64, kept=256)

    def power_law(mean: float, std: Tensor) -> Case:
        return spectrum(Gaussian(torch.cat([torch.tensor([mean]), torch.zeros(63)]).double(), std.double()))

    return {
        "spectrum": lambda: spectrum(Gaussian.spectrum()),
        "image spectrum": lambda: power_law(5.0, 10 * torch.arange(1, 65) ** -1.2),
        "steep spectrum": lambda: power_law(3.0, 8 * torch.logspace(0, -3, 64)),
        "digits": lambda: mixture(Digits(), classifier(Digits()), 20, 12),
        "Fashion-MNIST": fashion,
        "emoji": emoji,
    }


Key = tuple[str, str, int]  # case, variant, NFE


class Cell(NamedTuple):
    error: float
    other: float
    seconds: float
    note: str


def main(nfes: list[int] = [4, 5, 6, 8, 10], only: list[str] | None = None, root: str = "data") -> None:  # noqa: B006
    """All cells that tools/results/tuning.csv does not hold yet, then the tables.

    Args:
        nfes: denoiser calls.
        only: names of cases; all if left out.
        root: where the data sets are.
    """
    warnings.filterwarnings("ignore")
    known = cases(root)
    made = {name: cache(known[name]) for name in only or known}
    for name, make in made.items():
        for variant in (HAND, *VARIANTS):
            for nfe in nfes:
                if (name, variant, nfe) not in read():
                    cell = hand_made(make(), nfe) if variant == HAND else learned(make(), nfe, VARIANTS[variant])
                    append((name, variant, nfe), cell)
                    print(f"{name:16}{variant:26}{nfe:3} {cell.error:9.5f} {cell.other:9.5f} {cell.seconds:6.0f} s"
                          f"  {cell.note}", flush=True)  # fmt: skip
    (RESULTS / "tuning.md").write_text(report(read(), nfes))


def hand_made(case: Case, nfe: int) -> Cell:
    """The best sampler on any grid by what is learned, beside the best by the other measure."""
    start = time.perf_counter()
    samplers = {f"{name}, {grid}": build(name, grid, nfe) for name in SOLVERS for grid in GRIDS} | {
        DEFAULT: default(nfe)
    }
    tables = {name: sampler.table(case.problem.denoiser, nfe) for name, sampler in samplers.items()}
    errors = {name: case.error(table) for name, table in tables.items()}
    best = min(errors, key=lambda name: errors[name])
    return Cell(errors[best], min(map(case.other, tables.values())), time.perf_counter() - start, best)


def learned(case: Case, nfe: int, variant: dict[str, Any]) -> Cell:
    start = time.perf_counter()
    tuned = tune(case.problem, nfe, **case.options, **variant)
    seconds = time.perf_counter() - start
    return Cell(case.error(tuned.tableau), case.other(tuned.tableau), seconds, tuned.start)


def read() -> dict[Key, Cell]:
    if not FILE.is_file():
        return {}
    with FILE.open() as file:
        return {
            (r["case"], r["variant"], int(r["nfe"])): Cell(
                float(r["error"]), float(r["other"]), float(r["seconds"]), r["note"]
            )
            for r in csv.DictReader(file)
        }


def append(key: Key, cell: Cell) -> None:
    new = not FILE.is_file()
    with FILE.open("a") as file:
        rows = csv.writer(file, lineterminator="\n")
        if new:
            rows.writerow(["case", "variant", "nfe", "error", "other", "seconds", "note"])
        rows.writerow([*key, f"{cell.error:.6g}", f"{cell.other:.6g}", f"{cell.seconds:.0f}", cell.note])


def report(cells: dict[Key, Cell], nfes: list[int]) -> str:
    """A table a case and measure."""
    lines = ["Tables learned for exact denoisers, by `tools/bench_tuning.py`; best hand-made: of all solvers of "
             "`tools/bench_laws.py` on all its grids and default(nfe), the best in each cell."]  # fmt: skip
    for name in dict.fromkeys(case for case, _, _ in cells):
        exact = "spectrum" in name
        measures = {"error": "Exact W2" if exact else "Excess Frechet distance in the features learned in"}
        measures |= {} if exact else {"other": "Energy distance of values, not learned in"}
        for measure, title in measures.items():
            lines += [f"\n## {name}\n", f"{title}.\n", "| | " + " | ".join(f"NFE {n}" for n in nfes) + " | seconds |"]
            lines.append("|---|" + "---:|" * (len(nfes) + 1))
            for variant in (HAND, *VARIANTS):
                row = [cells.get((name, variant, n)) for n in nfes]
                if not any(row):
                    continue
                values = [f"{getattr(cell, measure):.4f}" if cell else "" for cell in row]
                seconds = max((cell.seconds for cell in row if cell), default=0)
                lines.append(f"| {variant} | {' | '.join(values)} | {seconds:.0f} |")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ersde-lit", "torch", "cmaes", "scikit-learn"))
    return "\n".join(
        [
            *lines,
            "\nSeconds: the longest of a row, one thread. Learned from seeds from 2^46, stopped by seeds from 2^47, "
            f"measured on seeds from 0. {platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, {versions}.\n",
        ]
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
