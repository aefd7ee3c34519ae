"""Shared by the tables of restorations, bias_field.py and shadows.py: methods, scores, and the files written."""

import csv
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from ersde_lit.metrics.fidelity import fidelity
from ersde_lit.sampling.images import quantise
from ersde_lit.sampling.restoration import RESTORER, restore
from ersde_lit.solvers import DDIM, ERSDE, Solver, TableSampler
from ersde_lit.training import DiffusionModule

RESULTS = Path(__file__).parent / "results"
SOLVERS: dict[str, Solver] = {
    "Euler (EDA)": DDIM(),
    "order 2": ERSDE(order=2, noise_scale="ode"),
    "order 3": ERSDE(order=3, noise_scale="ode"),
}
NFES = 1, 2, 5, 10
PACKAGES = "ersde-lit", "torch", "torchmetrics"
Restore = Callable[[Tensor], Tensor]
Score = Callable[[Tensor], Mapping[str, float]]
Method = tuple[str, int, Restore]  # with its number of network calls


def methods(model: DiffusionModule, regression: DiffusionModule) -> Iterator[Method]:
    """Regression by a network that was trained at lam = 1 alone, and every solver at every NFE."""
    yield "regression", 1, _restore(regression, DDIM(), 1)
    for name, solver in SOLVERS.items():
        for nfe in NFES:
            if nfe > 1 or name == "Euler (EDA)":  # one call is the same for all
                yield name, nfe, _restore(model, solver, nfe)


def ode(model: DiffusionModule) -> Restore:
    """The solution of the probability flow ODE that all solvers approximate."""
    return _restore(model, SOLVERS["order 2"], 100)


def _restore(model: DiffusionModule, solver: Solver, nfe: int) -> Restore:
    sampler = TableSampler(solver, RESTORER.grid)
    return lambda degraded: torch.cat([restore(model.ema_denoiser, sampler, one, nfe) for one in degraded.split(1)])


def eight_bits(images: Tensor) -> Tensor:
    return quantise(images) / 127.5 - 1


def scores(restored: Tensor, clean: Tensor, solved: Tensor) -> dict[str, float]:
    """Means over images in [-1, 1] of PSNR and SSIM to the clean ones, and of PSNR to the solution of the ODE."""
    values = fidelity(eight_bits(restored), clean)
    to_solved = fidelity(restored, solved)["psnr"]
    return {
        "PSNR dB": float(values["psnr"].mean()),
        "SSIM": float(values["ssim"].mean()),
        "to the ODE's dB": float(to_solved.mean()),
    }


class Table:
    """Scores of methods on sets of images, measured one after the other, and written as CSV and Markdown."""

    def __init__(self, title: str, command: str) -> None:
        self.title, self.command = title, command
        self.rows: list[dict[str, str | float]] = []

    def add(
        self, images: str, method: Method, degraded: Tensor, score: Callable[[Tensor], Mapping[str, float]]
    ) -> Tensor:
        """Restores images, scores them in 8 bits, and returns them."""
        name, nfe, run = method
        start = time.process_time()
        restored = run(degraded)
        milliseconds = 1e3 * (time.process_time() - start) / len(degraded)
        values = score(restored)
        self.rows.append({"images": images, "method": name, "NFE": nfe or ""} | {**values, "ms an image": milliseconds})
        print(self.rows[-1], flush=True)
        return restored

    def write(self, name: str, model: DiffusionModule, notes: str) -> None:
        with (RESULTS / f"{name}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, self.rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows)
        columns = [*self.rows[0]][1:]
        lines = [f"# {self.title}", "", f"Made by `{self.command}`."]
        for images in dict.fromkeys(row["images"] for row in self.rows):
            lines += ["", f"## {images}", "", f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
            for row in self.rows:
                if row["images"] == images:
                    cells = (f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns)
                    lines.append(f"| {' | '.join(cells)} |")
        weights = sum(weight.numel() for weight in model.network.parameters()) / 1e6
        versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
        lines += [
            "",
            f"Networks of {weights:.3g} M parameters after {model.images_seen:,} images; regression is one trained at "
            "lam = 1 alone. The last PSNR is to the model's own solution of its ODE, by 100 calls, without rounding. "
            f"{notes} Time is CPU time of one thread, an image at a time. {platform.machine()}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}.",
        ]
        (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
