"""Samples, FID over NFE and loss curves of denoisers of 64x64 colour images, trained on Noto's emoji, side by side.

    python -m ersde_lit fit --config configs/emoji64.yaml              # about an hour on one CPU core
    python -m ersde_lit fit --config configs/emoji64_edm2.yaml         # as long
    python tools/emoji64.py

Writes tools/results/emoji64.{csv,md}, <run>_samples.png (seeds 0 to 63) and emoji64_loss.png. The emoji have no
classes, so the features are those of a classifier trained to tell an image's four rotations apart.
"""

import csv
import os
import platform
from importlib import metadata
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from ersde_lit.data import Emoji, ImageDataModule, Split
from ersde_lit.denoisers import Denoiser
from ersde_lit.metrics import Recipe, Scores, classifier, nearest_distances, reference_of
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import ERSDE, Default, DPMSolverPP, Sampler, SDEDPMSolverPP, TableSampler
from ersde_lit.training import load

RESULTS = Path(__file__).parent / "results"
SAMPLERS: dict[str, Sampler] = {
    "default(nfe)": Default(),
    "ER-SDE 3, published": TableSampler(ERSDE(3, paper=True)),
    "ER-SDE 3 + corrector": TableSampler(ERSDE(3, corrector=3)),
    "DPM-Solver++(2M)": TableSampler(DPMSolverPP()),
    "SDE-DPM-Solver++(2M)": TableSampler(SDEDPMSolverPP()),
}


class Rotations(ImageDataModule):
    """Every image of a data set in its four rotations, the number of quarter turns as label."""

    num_classes = 4

    def __init__(self, data: ImageDataModule) -> None:
        super().__init__()
        self.data, self.image_shape = data, data.image_shape

    def load(self) -> dict[str, Split]:
        return {name: self._rotated(self.data.split(name).images) for name in ("train", "val", "test")}

    @staticmethod
    def _rotated(images: Tensor) -> Split:
        turned = torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])
        return Split(turned, torch.arange(4).repeat_interleave(len(images)))


def main(
    runs: list[Path] = [Path("runs/emoji64"), Path("runs/emoji64_edm2")],  # noqa: B006
    samples: int = 1000,
    nfes: list[int] = [5, 10, 20],  # noqa: B006
    root: str = "data",
) -> None:
    """Everything about some runs.

    Args:
        runs: their folders.
        samples: images for each FID, seeds 0 to samples - 1.
        nfes: network calls an image.
        root: where the data set is.
    """
    data = Emoji(root)
    features = classifier(Rotations(data), recipe=Recipe(max_images=40_000))
    scores = Scores(features, reference_of(data, features))
    training = data.split("train").images

    def measure(images: Tensor) -> tuple[float, float]:
        scores.reset()
        scores.update(images)
        return scores.compute()["fid"], nearest_distances(images[:200], training).mean().item()

    real = measure(data.split("test").images)
    rows, lines = [("", "real, held out", 0, *real)], []
    for run in runs:
        model = load(run / "checkpoints" / "last.ckpt")
        denoiser = model.ema_denoiser.to(memory_format=torch.channels_last)  # faster on a CPU
        for name, sampler in SAMPLERS.items():
            for nfe in nfes:
                rows.append((run.name, name, nfe, *measure(made(denoiser, sampler, samples, nfe))))
                print("{:14}{:24}{:4}  FID {:8.4f}  {:5.1f} grey levels to the nearest".format(*rows[-1]), flush=True)
        save_png(image_grid(made(denoiser, Default(), 64, 20), 8), RESULTS / f"{run.name}_samples.png")
        size = sum(p.numel() for p in model.denoiser.network.parameters()) / 1e6
        network, images = type(model.network).__name__, model.images_seen
        (logged,) = Trainer(logger=False, enable_progress_bar=False).validate(model, datamodule=data, verbose=False)
        loss = logged["val/loss"]
        lines.append(f"| {run.name} | {network} | {size:.2f} M | {images:,} | {loss:.4f} |")
    with (RESULTS / "emoji64.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([("run", "sampler", "nfe", "fid", "nearest"), *rows])
    (RESULTS / "emoji64.md").write_text(
        "| run | network | parameters | images trained on | val/loss |\n|---|---|---:|---:|---:|\n"
        + "\n".join(lines)
        + f"\n\n{report(rows, [run.name for run in runs], nfes)}"
        + f"\nFID of {samples:,} samples (seeds 0 to {samples - 1}) to the {len(training):,} training images, in "
        f"features of a classifier of the four rotations ({features.accuracy:.1%} of held-out images read right), and "
        f"in brackets the distance in grey levels of the first 200 to the nearest training image. val/loss is at the "
        f"same noise levels and noise for all runs. {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, ersde-lit {metadata.version('ersde-lit')}, torch {metadata.version('torch')}.\n"
    )
    plot(runs)


def made(denoiser: Denoiser, sampler: Sampler, count: int, nfe: int) -> Tensor:
    return torch.cat([quantise(block.images) for block in generate(denoiser, sampler, range(count), nfe)])


def report(rows: list[tuple[str, str, int, float, float]], runs: list[str], nfes: list[int]) -> str:
    cells = {(run, name, nfe): f"{value:.3f} ({nearest:.1f})" for run, name, nfe, value, nearest in rows}
    columns = [(run, nfe) for run in runs for nfe in nfes]
    lines = ["| sampler | " + " | ".join(f"{run}, NFE {nfe}" for run, nfe in columns) + " |"]
    lines += ["|---|" + "---:|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(cells[run, name, nfe] for run, nfe in columns) + " |" for name in SAMPLERS]
    name = "real, held out"
    return "\n".join([*lines, f"| {name} | " + " | ".join([cells["", name, 0]] * len(columns)) + " |", ""])


def plot(runs: list[Path]) -> None:
    """Validation losses over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for run in runs:
        scalars = EventAccumulator(str(run / "logs"), size_guidance={"scalars": 0}).Reload().Scalars("val/loss")
        axes.plot(
            [s.step for s in scalars], [s.value for s in scalars], "o-", label=run.name, linewidth=1, markersize=4
        )
    axes.set(xlabel="step", ylabel="val/loss", yscale="log")
    axes.legend()
    figure.savefig(RESULTS / "emoji64_loss.png", dpi=120)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
