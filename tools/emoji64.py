"""Samples, FID over NFE and loss curves of a denoiser of 64x64 colour images, trained on Noto's emoji.

    python -m ersde_lit fit --config configs/emoji64.yaml              # about an hour on one CPU core
    python tools/emoji64.py --run runs/emoji64

Writes tools/results/emoji64.{csv,md}, emoji64_samples.png (seeds 0 to 63) and emoji64_loss.png. The emoji have no
classes, so the features are those of a classifier trained to tell an image's four rotations apart.
"""

import csv
import os
import platform
from importlib import metadata
from pathlib import Path

import torch
from jsonargparse import auto_cli
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


def main(run: Path, samples: int = 1000, nfes: list[int] = [5, 10, 20], root: str = "data") -> None:  # noqa: B006
    """Everything about one run.

    Args:
        run: its folder.
        samples: images for each FID, seeds 0 to samples - 1.
        nfes: network calls an image.
        root: where the data set is.
    """
    data, model = Emoji(root), load(run / "checkpoints" / "last.ckpt")
    features = classifier(Rotations(data), recipe=Recipe(max_images=40_000))
    scores = Scores(features, reference_of(data, features))
    denoiser = model.ema_denoiser.to(memory_format=torch.channels_last)  # faster on a CPU
    training = data.split("train").images

    def measure(images: Tensor) -> tuple[float, float]:
        scores.reset()
        scores.update(images)
        return scores.compute()["fid"], nearest_distances(images[:200], training).mean().item()

    rows = [("real, held out", 0, *measure(data.split("test").images))]
    for name, sampler in SAMPLERS.items():
        for nfe in nfes:
            rows.append((name, nfe, *measure(made(denoiser, sampler, samples, nfe))))
            print("{:24}{:4}  FID {:8.4f}  {:5.1f} grey levels to the nearest".format(*rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "emoji64.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([("sampler", "nfe", "fid", "nearest"), *rows])
    size = sum(p.numel() for p in model.denoiser.parameters()) / 1e6
    (RESULTS / "emoji64.md").write_text(
        report(rows, nfes)
        + f"\nFID of {samples:,} samples (seeds 0 to {samples - 1}) to the {len(training):,} training images, in "
        f"features of a classifier of the four rotations ({features.accuracy:.1%} of held-out images read right), and "
        f"in brackets the distance in grey levels of the first 200 to the nearest training image. {size:.1f} M "
        f"parameters, averaged weights after {model.images_seen:,} images. {platform.machine()}, {os.cpu_count()} "
        f"cores, Python {platform.python_version()}, ersde-lit {metadata.version('ersde-lit')}, torch "
        f"{metadata.version('torch')}.\n"
    )
    save_png(image_grid(made(denoiser, Default(), 64, 20), 8), RESULTS / "emoji64_samples.png")
    plot(run)


def made(denoiser: Denoiser, sampler: Sampler, count: int, nfe: int) -> Tensor:
    return torch.cat([quantise(block.images) for block in generate(denoiser, sampler, range(count), nfe)])


def report(rows: list[tuple[str, int, float, float]], nfes: list[int]) -> str:
    cells = {(name, nfe): f"{value:.3f} ({nearest:.1f})" for name, nfe, value, nearest in rows}
    lines = ["| sampler | " + " | ".join(f"NFE {nfe}" for nfe in nfes) + " |", "|---|" + "---:|" * len(nfes)]
    lines += [f"| {name} | " + " | ".join(cells[name, nfe] for nfe in nfes) + " |" for name in SAMPLERS]
    name = rows[0][0]
    return "\n".join([*lines, f"| {name} | " + " | ".join([cells[name, 0]] * len(nfes)) + " |", ""])


def plot(run: Path) -> None:
    """Training and validation losses over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    events = EventAccumulator(str(run / "logs"), size_guidance={"scalars": 0}).Reload()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, style in (("train/loss", "-"), ("val/loss", "o-")):
        scalars = events.Scalars(name)
        axes.plot([s.step for s in scalars], [s.value for s in scalars], style, label=name, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="emoji64")
    axes.legend()
    figure.savefig(RESULTS / "emoji64_loss.png", dpi=120)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
