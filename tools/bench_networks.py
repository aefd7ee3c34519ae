"""Samplers on trained networks, learned tables among them: `tune` and `evaluate` with these options.

    for name in digits digits_vp digits_ve; do python -m ersde_lit fit --config configs/$name.yaml; done
    python tools/bench_networks.py                  # hours on one CPU core; what is there is kept
    python tools/bench_networks.py --only [digits]

Every sampler on EDM's grid of rho 7 and of rho 12, default and noisy on their own, on

- the digits networks of the quick start, EDM, VP and VE, which are strong for their data;
- the Fashion-MNIST network of tools/results, which is weak.

Frechet distance in classifier features, in which the tables were learned; and what `tune` reports on fresh seeds in
pixels, in which they were learned too, and in EfficientNet's features, in which nothing was learned. Writes
tools/results/networks.md and the tables themselves, tools/results/NAME.tables. Working folders are in runs.
"""

import csv
import json
import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import auto_cli

from ersde_lit.cli.evaluate import WhatOptions, evaluate
from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.machine import MachineOptions
from ersde_lit.cli.options.model import ModelOptions
from ersde_lit.cli.options.reference import ReferenceOptions
from ersde_lit.cli.options.sweep import SweepOptions
from ersde_lit.cli.options.tuning import LearningOptions, TuneOptions
from ersde_lit.cli.tune import tune

RESULTS = Path(__file__).parent / "results"
NFES = [4, 5, 6, 8, 10, 20]


class Network(NamedTuple):
    """A checkpoint and what its samples are compared with; `learned` are the numbers of calls to learn a table for."""

    checkpoint: Path
    data: str
    images: int
    learned: list[int]


NETWORKS = {
    "digits": Network(Path("runs/digits/checkpoints/last.ckpt"), "ersde_lit.data.Digits", 1797, [4, 5, 6, 8, 10]),
    "digits_vp": Network(Path("runs/digits_vp/checkpoints/last.ckpt"), "ersde_lit.data.Digits", 1797, [5, 6, 10]),
    "digits_ve": Network(Path("runs/digits_ve/checkpoints/last.ckpt"), "ersde_lit.data.Digits", 1797, [5, 6, 10]),
    "fashion_mnist": Network(RESULTS / "fashion_mnist.ckpt", "ersde_lit.data.FashionMNIST:root=data", 2000, [5, 6, 10]),
}
OURS: dict[str, dict[str, Any]] = {"default(nfe)": {}, "noisy(nfe)": {"solver": "noisy"}}
RIVALS: dict[str, dict[str, Any]] = {  # as options of `sample`
    "ER-SDE 3, published": {"solver": "er_sde", "order": 3, "paper": True},
    "DPM-Solver++(2M)": {"solver": "dpm++2m"},
    "SDE-DPM-Solver++(2M)": {"solver": "sde_dpm++2m"},
    "UniPC-2": {"solver": "unipc2"},
    "UniPC-3": {"solver": "unipc3"},
    "iPNDM-3": {"solver": "ipndm", "order": 3},
    "DEIS-3": {"solver": "deis"},
}
RHO_12 = ", rho 12"
LEARNED = "learned"
MACHINE = MachineOptions(batch_size=125, accelerator="cpu")


def main(only: list[str] | None = None, steps: int = 120, minutes: float = 10.0) -> None:
    """Learns and measures what is not there yet, then writes the page of all networks that were measured.

    Args:
        only: some of the networks; all if not given.
        steps: of learning a table, at most.
        minutes: of learning a table, at most.
    """
    for name in only or NETWORKS:
        learn(name, NETWORKS[name], steps, minutes)
        measure(name, NETWORKS[name])
    measured = [name for name in NETWORKS if folder(name).joinpath("results.csv").is_file()]
    (RESULTS / "networks.md").write_text(page(measured))


def learn(name: str, network: Network, steps: int, minutes: float) -> None:
    tune(
        TuneOptions(str(network.checkpoint), str(RESULTS / f"{name}.tables"), network.learned),
        ModelOptions(),
        LearningOptions(steps=steps, minutes=minutes, also="efficientnet"),
        ReferenceOptions(network.data, features="classifier"),
        GuidanceOptions(),
        MACHINE,
    )


def measure(name: str, network: Network) -> None:
    learned = {LEARNED: {"solver": str(RESULTS / f"{name}.tables"), "nfe": network.learned}}
    on_rho_12 = {sampler + RHO_12: {**options, "rho": 12.0} for sampler, options in RIVALS.items()}
    evaluate(
        WhatOptions(str(network.checkpoint), out=str(folder(name))),
        ModelOptions(),
        [f"0-{network.images - 1}"],
        SweepOptions(NFES, samplers=learned | OURS | RIVALS | on_rho_12),
        ReferenceOptions(network.data, features="classifier"),
        GuidanceOptions(),
        MACHINE,
    )


def folder(name: str) -> Path:
    return Path("runs") / f"{name}_networks"


def page(names: list[str]) -> str:
    """Per network a table of Frechet distances and one of what was not learned in; before them, the means over all."""
    values = {name: read(name) for name in names}
    best = {(name, n): min(best_grid(values[name], rival, n) for rival in RIVALS) for name in names for n in NFES}
    lines = [
        "Samplers on trained networks, by `tools/bench_networks.py`: learned tables, our two hand-made samplers, and "
        "the rivals on EDM's grid of rho 7 and of rho 12."
    ]
    if len(names) > 1:
        lines += [
            "\nGeometric mean over the networks of a sampler's Frechet distance, divided by the best rival's on that "
            "network's best grid. Each on the one grid that is best for it at that NFE.\n",
            *heading(NFES),
        ]
    for sampler in (*OURS, *RIVALS) if len(names) > 1 else ():
        row = []
        for n in NFES:
            on = [sampler, sampler + RHO_12] if sampler in RIVALS else [sampler]
            row.append(min(geometric_mean([values[name][grid, n] / best[name, n] for name in names]) for grid in on))
        lines.append(as_row(sampler, row, ".2f"))
    for name in names:
        real = next(value for (sampler, _), value in values[name].items() if sampler.startswith("real"))
        about = NETWORKS[name]
        lines += [
            f"\n## {name}\n",
            f"Frechet distance of {about.images:,} samples in classifier features (real images held out, up to as "
            f"many: {real:.3f}), each sampler on the better of its two grids.\n",
            *heading(NFES),
        ]
        lines += [as_row(s, [best_grid(values[name], s, n) for n in NFES]) for s in (*OURS, *RIVALS, LEARNED)]
        lines += by_tune(name)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ersde-lit", "torch", "torchmetrics"))
    return "\n".join(
        [
            *lines,
            f"\nSeeds 0 onwards; learned from seeds from 2^46, stopped by seeds from 2^47. {platform.machine()}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}.\n",
        ]
    )


def by_tune(name: str) -> list[str]:
    """The scores in a file of tables, but for the page's own features; and what learning took."""
    facts = json.loads((RESULTS / f"{name}.tables").read_text())["facts"]
    nfes = NETWORKS[name].learned
    lines = []
    measures = dict.fromkeys(
        (score["measure"], score["features"]) for score in facts["scores"] if score["features"] != facts["features"]
    )
    for measure, features in measures:
        of = {
            (score["sampler"], score["nfe"]): score["value"]
            for score in facts["scores"]
            if (score["measure"], score["features"]) == (measure, features)
        }
        learned = "learned in too" if features in facts["objective"] else "not learned in"
        lines += [f"\n{measure[0].upper()}{measure[1:]}, {features}, {learned}.\n", *heading(nfes)]
        lines += [as_row(s, [of[s, n] for n in nfes], ".4g") for s in dict.fromkeys(sampler for sampler, _ in of)]
    seconds = ", ".join(f"{facts['learning'][str(n)]['seconds']:.0f}" for n in nfes)
    return [*lines, f"\nSeconds of learning at each NFE, beside other work: {seconds}."]


def read(name: str) -> dict[tuple[str, int], float]:
    """Frechet distances by sampler and NFE; those of real images at NFE 0."""
    with (folder(name) / "results.csv").open() as file:
        return {(row["sampler"], int(row["nfe"] or 0)): float(row["fid"]) for row in csv.DictReader(file)}


def best_grid(values: dict[tuple[str, int], float], sampler: str, nfe: int) -> float:
    return min(values.get((sampler, nfe), math.nan), values.get((sampler + RHO_12, nfe), math.inf))


def geometric_mean(ratios: list[float]) -> float:
    return math.prod(ratios) ** (1 / len(ratios))


def heading(nfes: list[int]) -> list[str]:
    return ["| | " + " | ".join(f"NFE {n}" for n in nfes) + " |", "|---|" + "---:|" * len(nfes)]


def as_row(name: str, values: list[float], form: str = ".3f") -> str:
    return f"| {name} | " + " | ".join("" if math.isnan(value) else f"{value:{form}}" for value in values) + " |"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
