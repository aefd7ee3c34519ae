"""How fast images come: `sample` against the loops that people write, with the same networks; in memory and to disk.

    python -m ersde_lit fit --config configs/digits.yaml
    python -m ersde_lit fit --config configs/fashion_mnist.yaml
    python tools/bench_sampling.py --networks '{digits: runs/digits/checkpoints/last.ckpt,
        Fashion-MNIST: runs/fashion_mnist/checkpoints/last.ckpt}'

On a GPU, with a DDPM++ of random weights, 55.7 M parameters, 32x32x3:

    python tools/bench_sampling.py --accelerator cuda --ranks [1] --images 5000 --batch_size 250 --name sampling_gpu

Writes tools/results/{name}.{csv,md}. In memory: all ways take turns in one process, block by block, and a number is the
median of its blocks. To disk: the command as a whole, whose start (imports, checkpoint) is told apart, against loops in
this process that save PNGs one by one as scripts do. `bare` is the network alone, called as often with the same batch.
"""

import csv
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from bench_overhead import clock, scheduler
from einops import rearrange
from jsonargparse import auto_cli
from PIL import Image
from torch import Tensor

from ersde_lit.denoisers import Denoiser
from ersde_lit.networks import SongUNet
from ersde_lit.sampling.labels import labels_of_seeds
from ersde_lit.sampling.run import Job
from ersde_lit.solvers import DPMSolverPP, Heun, SeededNoise, TableSampler, default, grids
from ersde_lit.training import DiffusionModule, load
from ersde_lit.training.averaged import SPEC_KEY

RESULTS = Path(__file__).parent / "results"
HEADER = [
    "network",
    "where",
    "way",
    "ranks",
    "nfe",
    "images",
    "seconds",
    "images_a_second",
    "over_bare",
    "start_seconds",
]
BARE, SCRIPT, PIPELINE = "bare network", "script in EDM's manner, Heun", "diffusers' pipeline, DPM-Solver++(2M)"

Make = Callable[[Sequence[int]], Tensor]  # seeds -> images, uint8 [n, C, H, W] on the CPU


def main(
    networks: dict[str, Path] = {},  # noqa: B006
    accelerator: str = "cpu",
    ranks: list[int] = [1, 2],  # noqa: B006
    nfe: int = 19,
    images: int = 2000,
    batch_size: int = 125,
    blocks: int = 15,
    name: str = "sampling",
) -> None:
    """Images a second, and time over that of the bare network.

    Args:
        networks: checkpoints by the name they get; a DDPM++ of random weights where there is none.
        accelerator: cpu or cuda.
        ranks: numbers of processes for the command.
        nfe: network calls an image; odd, as Heun's.
        images: to disk, for each way.
        batch_size: images at a time.
        blocks: in memory, for each way.
        name: of the files written.
    """
    work, rows = Path(tempfile.mkdtemp(prefix="bench_sampling")), []
    for title, path in (networks or {"DDPM++": ddpmpp(work)}).items():
        denoiser = load(path).ema_denoiser.to(accelerator)
        ways, seeds = makers(denoiser, nfe), range(batch_size)
        calls: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(blocks + 1):
            for way, make in ways.items():
                seconds, _ = clock(partial(make, seeds), accelerator)
                calls[way] += [seconds] if turn else []  # the first warms up
        bare = median(calls[BARE]) / batch_size
        for way, seconds in calls.items():
            rows.append([title, "memory", way, 1, nfe, batch_size, *figures(median(seconds), batch_size, bare), 0])
            print(*rows[-1], sep="  ", flush=True)
        for way in (SCRIPT, PIPELINE):
            seconds, _ = clock(partial(save_each, ways[way], range(images), batch_size, work / "pngs"), accelerator)
            rows.append([title, "disk", f"{way}, PNGs", 1, nfe, images, *figures(seconds, images, bare), 0])
            print(*rows[-1], sep="  ", flush=True)
        for out in ("samples", "samples.npz"):
            for count in ranks:
                options = [
                    f"--nfe={nfe}",
                    f"--batch_size={batch_size}",
                    f"--accelerator={accelerator}",
                    f"--devices={count}",
                ]
                command = [
                    f"--ckpt_path={path}",
                    f"--seeds=0-{images - 1}",
                    f"--out={work / out}",
                    "--solver=heun",
                    *options,
                ]
                whole, seconds = run(command, images)
                way = f"sample, Heun, {'PNGs' if out == 'samples' else '.npz'}"
                numbers = figures(seconds, images, bare)
                rows.append([title, "disk", way, count, nfe, images, *numbers, round(whole - seconds, 2)])
                print(*rows[-1], sep="  ", flush=True)
                remove(work / out)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    (RESULTS / f"{name}.md").write_text(report(rows) + caption(accelerator, images, batch_size, blocks))
    shutil.rmtree(work)


def makers(denoiser: Denoiser, nfe: int) -> dict[str, Make]:
    """All ways to make images in memory."""

    def ours(sampler: Any) -> Make:
        return lambda seeds: Job(denoiser, sampler, nfe).images(seeds, len(seeds))

    return {
        BARE: bare_network(denoiser, nfe),
        "ours, Heun": ours(Heun()),
        SCRIPT: script(denoiser, nfe),
        "ours, DPM-Solver++(2M)": ours(TableSampler(DPMSolverPP())),
        PIPELINE: pipeline(denoiser, nfe),
        "ours, default": ours(default(nfe)),
    }


def labels_for(denoiser: Denoiser, seeds: Sequence[int], device: torch.device) -> Tensor | None:
    return labels_of_seeds(seeds, denoiser.num_classes).to(device) if denoiser.num_classes else None


def bare_network(denoiser: Denoiser, nfe: int) -> Make:
    @torch.inference_mode()
    def make(seeds: Sequence[int]) -> Tensor:
        device = next(denoiser.parameters()).device
        x, c_noise = (
            torch.randn(len(seeds), *denoiser.image_shape, device=device),
            torch.zeros(len(seeds), device=device),
        )
        labels = labels_for(denoiser, seeds, device)
        for _ in range(nfe):
            out = denoiser.network(x, c_noise, labels)
        return out

    return make


def script(denoiser: Denoiser, nfe: int) -> Make:
    """As the samplers published with EDM go about it: a generator an image, the state in float64, two calls a step."""

    @torch.inference_mode()
    def make(seeds: Sequence[int]) -> Tensor:
        device = next(denoiser.parameters()).device
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        x = torch.stack([torch.randn(denoiser.image_shape, generator=g, device=device) for g in generators])
        labels = labels_for(denoiser, seeds, device)
        lams = grids.edm((nfe + 1) // 2).to(device)
        x = x.double() * lams[0]
        for now, new in pairwise(lams):
            slope = (x - denoiser(x.float(), now.float(), labels).double()) / now
            y = x + (new - now) * slope
            if new > 0:
                slope = (slope + (y - denoiser(y.float(), new.float(), labels).double()) / new) / 2
                y = x + (new - now) * slope
            x = y
        return (x * 127.5 + 128).clip(0, 255).to(torch.uint8).cpu()

    return make


def pipeline(denoiser: Denoiser, nfe: int) -> Make:
    """The loop of diffusers' pipelines around its scheduler."""
    options = {"prediction_type": "sample", "use_karras_sigmas": True}
    set_up = scheduler(diffusers.DPMSolverMultistepScheduler(**options))

    @torch.inference_mode()
    def make(seeds: Sequence[int]) -> Tensor:
        device = next(denoiser.parameters()).device
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        x = torch.cat([torch.randn(1, *denoiser.image_shape, generator=g, device=device) for g in generators])
        labels = labels_for(denoiser, seeds, device)
        steps = set_up(nfe, x * 80, SeededNoise(seeds, denoiser.image_shape, device))
        x0 = steps(lambda y, sigma: denoiser(y, sigma.to(device), labels))
        return ((x0 / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    return make


def save_each(make: Make, seeds: Sequence[int], batch_size: int, folder: Path) -> None:
    """A script's way to disk: a batch, then its images as PNGs."""
    folder.mkdir()
    for start in range(0, len(seeds), batch_size):
        part = seeds[start : start + batch_size]
        for seed, image in zip(part, rearrange(make(part), "n c h w -> n h w c").numpy(), strict=True):
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{seed:06d}.png")
    remove(folder)


def run(arguments: list[str], images: int) -> tuple[float, float]:
    """Seconds of a `sample` command as a whole, and of its sampling and writing."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "ersde_lit", "sample", *arguments]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - start
    found = re.search(r"([0-9.e+]+) a second", ended.stdout)
    if found is None:
        sys.exit(f"the command said nothing of its speed: {ended.stdout}")
    return whole, images / float(found[1])


def figures(seconds: float, images: int, bare: float) -> list[float]:
    """[seconds, images a second, over the bare network]; `bare` is its seconds an image."""
    return [round(seconds, 4), round(images / seconds, 1), round(seconds / images / bare, 3)]


def ddpmpp(folder: Path) -> Path:
    """A checkpoint of random weights, but for its size like those of CIFAR-10."""
    module = DiffusionModule(SongUNet(32, 3, label_dim=10))
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, folder / "ddpmpp.ckpt")
    return folder / "ddpmpp.ckpt"


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def report(rows: list[list[Any]]) -> str:
    cells = {(title, where, way, ranks): row for title, where, way, ranks, *row in rows}
    titles = list(dict.fromkeys(title for title, *_ in cells))
    lines = []
    for where in ("memory", "disk"):
        lines += [f"| {where} | ranks | {' | '.join(titles)} |", "|---|---:|" + "---:|" * len(titles)]
        for way, ranks in dict.fromkeys(key[2:] for key in cells if key[1] == where):
            found = [cells[title, where, way, ranks] for title in titles]
            starts = [f", start {row[-1]:.0f} s" if row[-1] else "" for row in found]
            texts = [f"{row[3]:.0f}/s ({row[4]:.2f}x bare{s})" for row, s in zip(found, starts, strict=True)]
            lines.append(f"| {way} | {ranks} | {' | '.join(texts)} |")
        lines.append("")
    return "\n".join(lines)


def caption(accelerator: str, images: int, batch_size: int, blocks: int) -> str:
    where = torch.cuda.get_device_name() if accelerator == "cuda" else f"{torch.get_num_threads()} threads"
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("ersde-lit", "torch", "diffusers"))
    return (
        f"Images a second, and time over that of as many calls of the bare network. In memory: medians of {blocks} "
        f"blocks of {batch_size}, taken in turn, seeds to uint8. To disk: {images} images, {batch_size} a block; "
        f"`start` is what the command takes beside: imports, checkpoint, other ranks. Float32. {where}, "
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}.\n"
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
