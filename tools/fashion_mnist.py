"""FID over NFE of every sampler on one trained Fashion-MNIST denoiser: same network, same seeds, same grid.

    python -m ersde_lit fit --config configs/fashion_mnist.yaml        # about an hour on two CPU cores
    python tools/fashion_mnist.py --ckpt_path runs/fashion_mnist/checkpoints/last.ckpt

Writes tools/results/fashion_mnist.{csv,md,png} and fashion_mnist_samples.png, ten images of each class by the default
sampler at 20 NFE. Resumable: cells that are in the .csv are not measured again.
"""

import csv
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import torch
from jsonargparse import auto_cli

from ersde_lit.data import FashionMNIST
from ersde_lit.evaluation import FID, Classifier, Statistics, classifier, statistics
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    Default,
    DPMSolverPP,
    Heun,
    Sampler,
    SDEDPMSolverPP,
    TableSampler,
    UniPC,
    default,
)
from ersde_lit.training import load

RESULTS = Path(__file__).parent / "results"
REAL = "real test images"
SAMPLERS: dict[str, Sampler] = {
    "default(nfe)": Default(),
    "ER-SDE 3, published": TableSampler(ERSDE(3, paper=True)),
    "ER-SDE 3": TableSampler(ERSDE(3)),
    "ER-SDE 3 + corrector": TableSampler(ERSDE(3, corrector=3)),
    "ER-SDE 2 + corrector, nodes 0.5": TableSampler(ERSDE(2, corrector=2, nodes=0.5)),
    "ODE 3 + corrector": TableSampler(ERSDE(3, "ode", corrector=3)),
    "DDIM": TableSampler(DDIM()),
    "DPM-Solver++(2M)": TableSampler(DPMSolverPP()),
    "SDE-DPM-Solver++(2M)": TableSampler(SDEDPMSolverPP()),
    "UniPC-2": TableSampler(UniPC()),
    "EDM Heun": Heun(),
    "DEIS-3": TableSampler(DEIS()),
    "iPNDM-4": TableSampler(IPNDM()),
}


def main(
    ckpt_path: Path,
    samples: int = 5000,
    first_seed: int = 0,
    nfes: list[int] = [5, 10, 20, 50],  # noqa: B006
    samplers: list[str] | None = None,
    workers: int = os.cpu_count() or 1,
    root: str = "data",
) -> None:
    """FID of every sampler at every NFE.

    Args:
        ckpt_path: a checkpoint of configs/fashion_mnist.yaml.
        samples: images a cell, seeds first_seed .. first_seed + samples - 1.
        first_seed: of each cell.
        nfes: network calls an image.
        samplers: which to measure now; all of them if not given.
        workers: processes, each of one thread, that measure cells side by side.
        root: where the data set is.
    """
    path = RESULTS / "fashion_mnist.csv"
    RESULTS.mkdir(exist_ok=True)
    only(hashlib.sha256(ckpt_path.read_bytes()).hexdigest(), samples, first_seed)
    done = read(path)
    data = FashionMNIST(root)
    net = classifier(data)  # trained before the workers ask for it
    cells = [(name, nfe) for nfe in sorted(nfes) for name in samplers or SAMPLERS]
    cells = [cell for cell in [(REAL, 0), *cells] if cell not in done]
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = {
            pool.submit(measure, name, nfe, ckpt_path, samples, first_seed, root): (name, nfe) for name, nfe in cells
        }
        for job in as_completed(jobs):
            name, nfe = jobs[job]
            fid, seconds = job.result()
            done[name, nfe] = fid
            append(path, name, nfe, fid, seconds)
            print(f"{name:35}{nfe:4}  FID {fid:7.3f}  {seconds:6.0f} s", flush=True)
    report(done, nfes, caption(ckpt_path, samples, first_seed, net.description))
    picture(ckpt_path)


def measure(name: str, nfe: int, ckpt_path: Path, samples: int, first_seed: int, root: str) -> tuple[float, float]:
    """The FID of a cell and the seconds it took."""
    fid = FID(*reference(root))
    start = time.perf_counter()
    for images in real(root, samples) if name == REAL else generated(name, nfe, ckpt_path, samples, first_seed):
        fid.update(images)
    return fid.compute(), time.perf_counter() - start


@cache
def reference(root: str) -> tuple[Classifier, Statistics]:
    """Feature network and statistics of the training images, once a process."""
    data = FashionMNIST(root)
    features = classifier(data)
    return features, statistics(features, data.reference_images())


def real(root: str, samples: int) -> Iterable[torch.Tensor]:
    return FashionMNIST(root).split("test").images[:samples].split(500)


def generated(name: str, nfe: int, ckpt_path: Path, samples: int, first_seed: int) -> Iterable[torch.Tensor]:
    denoiser = load(ckpt_path).ema_denoiser.to(memory_format=torch.channels_last)  # a third faster on a CPU
    seeds = range(first_seed, first_seed + samples)
    return (quantise(block.images) for block in generate(denoiser, SAMPLERS[name], seeds, nfe, batch_size=125))


def picture(ckpt_path: Path) -> None:
    """Seeds 0 to 99, a row a class."""
    labels = torch.arange(10).repeat_interleave(10)
    (block,) = generate(load(ckpt_path).ema_denoiser, default(20), range(100), 20, labels, batch_size=100)
    save_png(image_grid(quantise(block.images), 10), RESULTS / "fashion_mnist_samples.png")


def only(checkpoint: str, samples: int, first_seed: int) -> None:
    """Ends where the results that are there are of something else."""
    settings, path = (
        {"sha256": checkpoint, "samples": samples, "first_seed": first_seed},
        RESULTS / "fashion_mnist.json",
    )
    if not path.exists():
        path.write_text(json.dumps(settings))
    elif json.loads(path.read_text()) != settings:
        sys.exit(f"{RESULTS}/fashion_mnist.* are of another checkpoint, seeds or number of samples: move them away")


def read(path: Path) -> dict[tuple[str, int], float]:
    if not path.exists():
        return {}
    with path.open() as file:
        return {(row["sampler"], int(row["nfe"])): float(row["fid"]) for row in csv.DictReader(file)}


def append(path: Path, name: str, nfe: int, fid: float, seconds: float) -> None:
    header = "" if path.exists() else "sampler,nfe,fid,seconds\n"
    with path.open("a") as file:
        file.write(f'{header}"{name}",{nfe},{fid:.4f},{seconds:.1f}\n')


def caption(ckpt_path: Path, samples: int, first_seed: int, features: str) -> str:
    model = load(ckpt_path)
    parameters = sum(p.numel() for p in model.denoiser.parameters()) / 1e6
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ersde-lit", "torch", "torchmetrics"))
    return (
        f"FID of {samples:,} samples (seeds {first_seed} to {first_seed + samples - 1}, labels drawn from them) to "
        f"the 60,000 training images of Fashion-MNIST, in {features}; so not comparable with Inception FIDs. One "
        f"class-conditional EDM network of {parameters:.2f} M parameters, averaged weights after "
        f"{model.images_seen:,} images; EDM grid, 80 to 0.002 and 0. EDM Heun makes an odd number of calls: one less "
        f"than the column says where that is even. {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {versions}."
    )


def report(done: dict[tuple[str, int], float], nfes: list[int], text: str) -> None:
    """The table in Markdown, best of a column in bold, and the plot."""
    best = {nfe: min(done.get((name, nfe), math.inf) for name in SAMPLERS) for nfe in nfes}

    def cell(name: str, nfe: int) -> str:
        value = done.get((name, nfe), math.inf)
        return "" if value == math.inf else f"**{value:.3f}**" if value == best[nfe] else f"{value:.3f}"

    lines = ["| sampler | " + " | ".join(f"NFE {nfe}" for nfe in nfes) + " |", "|---|" + "---:|" * len(nfes)]
    lines += [f"| {name} | " + " | ".join(cell(name, nfe) for nfe in nfes) + " |" for name in SAMPLERS]
    lines.append(f"| {REAL} | " + " | ".join([f"{done[REAL, 0]:.3f}"] * len(nfes)) + " |")
    (RESULTS / "fashion_mnist.md").write_text("\n".join([*lines, "", text, ""]))

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for name, sampler in SAMPLERS.items():
        measured = [nfe for nfe in nfes if (name, nfe) in done]
        calls = [sampler.calls(nfe) if isinstance(sampler, Heun) else nfe for nfe in measured]
        style = "o-" if name.startswith(("default", "ER-SDE", "ODE")) else "s--"
        axes.plot(calls, [done[name, nfe] for nfe in measured], style, label=name, markersize=4, linewidth=1.2)
    axes.axhline(done[REAL, 0], color="grey", linewidth=1, linestyle=":", label=REAL)
    axes.set(xscale="log", yscale="log", xlabel="NFE", ylabel="FID (classifier features)", title="Fashion-MNIST")
    axes.set_xticks(nfes, map(str, nfes))
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "fashion_mnist.png", dpi=150)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
