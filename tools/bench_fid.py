"""How fast FID comes: ours, torch-fidelity and clean-fid on the same images, weights and features, in one run.

    OMP_NUM_THREADS=1 python tools/bench_fid.py
    python tools/bench_fid.py --device cuda --images 5000 --batch_size 100 --name fid_gpu

Writes tools/results/{name}.{csv,md}. Images: from PNGs on disk to features, with random weights of Inception, which
every program is given; they take turns. Statistics: from features to FID. Memory: what a process takes at its peak
beyond what it took before the first image, at two numbers of images.
"""

import contextlib
import csv
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from unittest.mock import patch

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch
from cleanfid import fid as cleanfid
from cleanfid import inception_pytorch
from inception_weights import random_weights
from jsonargparse import auto_cli
from PIL import Image
from torch import Tensor
from torch_fidelity import metric_fid
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import get_featuresdict_from_dataset

from ersde_lit.metrics import Features, FrechetDistance, Inception, Statistics, image_files
from ersde_lit.metrics.features import extract
from ersde_lit.metrics.frechet import Moments
from ersde_lit.metrics.reference import Reference
from ersde_lit.metrics.scores import Scores

RESULTS = Path(__file__).parent / "results"
OURS, FIDELITY, CLEAN = "ours", "torch-fidelity", "clean-fid"
HEADER = ["part", "way", "images", "seconds", "images_a_second", "over_ours", "peak_mib"]


def main(
    images: int = 24,
    turns: int = 3,
    batch_size: int = 16,
    size: int = 32,
    features: int = 5000,
    memory: list[int] = [2000, 10000],  # noqa: B006
    device: str = "cpu",
    name: str = "fid",
) -> None:
    """Images a second, seconds of the statistics, peak memory.

    Args:
        images: PNGs, each turn of each program.
        turns: of each program, after one that warms up.
        batch_size: of all programs.
        size: of the images, in pixels.
        features: vectors that the statistics are of.
        memory: two numbers of images.
        device: cpu or cuda.
        name: of the files written.
    """
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory(prefix="bench_fid") as folder:
        work = Path(folder)
        write_pngs(work / "set", images, size)
        random_weights(work / "weights.pth")
        ways = to_features(work, batch_size, device)
        found = {way: torch.as_tensor(make()) for way, make in ways.items()}
        apart = (found[OURS] - found[FIDELITY]).abs().max() / found[FIDELITY].abs().max()
        print(f"features of ours and torch-fidelity differ by {apart:.1e} of the largest", flush=True)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, make in ways.items():
                seconds[way].append(clock(make, device))
        rows += of_times("images", {way: median(times) for way, times in seconds.items()}, images)
    a, b = (drawn(features, seed) for seed in (0, 1))
    values, times = {}, {}
    for way, distance in to_distance(device).items():
        times[way] = clock(lambda distance=distance, way=way: values.update({way: distance(a, b)}), device)
    once = FrechetDistance(moments(b, device))
    _ = once.factor
    times["ours, further sets"] = clock(lambda: once(moments(a, device)), device)
    rows += of_times("statistics", times, features)
    worst = max(abs(value / values[OURS] - 1) for value in values.values())
    for count in memory:
        for way in (OURS, "ours, Inception", "features kept, np.cov"):
            few = count // 40 if "Inception" in way else count
            rows.append(["memory", way, few, "", "", "", peak(way, few)])
            print(*rows[-1], sep="  ", flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    (RESULTS / f"{name}.md").write_text(
        report(rows) + caption(device, batch_size, size, turns, features, float(apart), worst)
    )


def write_pngs(folder: Path, count: int, size: int) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(generator.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{k:05d}.png")


def to_features(work: Path, batch_size: int, device: str) -> dict[str, Callable[[], Tensor | np.ndarray]]:
    """From the folder of PNGs to features on the CPU, or where the program leaves them."""
    weights, folder = work / "weights.pth", work / "set"
    ours = Inception(weights).to(device)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights)).to(device)
    state = torch.load(weights, weights_only=True)
    with patch.object(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state):
        clean = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).to(device).eval()

    def of_ours() -> Tensor:
        batches = image_files(folder).batches(batch_size)
        return torch.cat([extract(ours, images.to(device))[0] for images in batches]).cpu()

    def of_fidelity() -> Tensor:
        dataset = ImagesPathDataset([str(path) for path in sorted(folder.iterdir())])
        with patch("multiprocessing.cpu_count", lambda: 0):  # no workers: the same single process for all
            found = get_featuresdict_from_dataset(dataset, theirs, batch_size, device == "cuda", False, False)
        return found["2048"]

    def of_clean() -> np.ndarray:
        def model(x: Tensor) -> Tensor:
            return clean(x / 255)[0].squeeze(-1).squeeze(-1)

        with contextlib.redirect_stdout(io.StringIO()):
            options = {"num_workers": 0, "batch_size": batch_size, "device": torch.device(device), "verbose": False}
            return cleanfid.get_folder_features(str(folder), model, **options)

    return {OURS: of_ours, FIDELITY: of_fidelity, CLEAN: of_clean}


def drawn(count: int, seed: int) -> Tensor:
    """Features with a spectrum: standard deviations 1 to 0.01."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2048, generator=generator) * torch.logspace(0, -2, 2048)


def moments(features: Tensor, device: str) -> Statistics:
    sums = Moments(features.shape[1], sync=False).to(device)
    for batch in features.to(device).split(50):
        sums.update(batch)
    return sums.compute()


def to_distance(device: str) -> dict[str, Callable[[Tensor, Tensor], float]]:
    """From the features of two sets to their FID."""

    def of_fidelity(a: Tensor, b: Tensor) -> float:
        pair = [metric_fid.fid_features_to_statistics(features) for features in (a, b)]
        return metric_fid.fid_statistics_to_metric(*pair, verbose=False)[metric_fid.KEY_METRIC_FID]

    def of_clean(a: Tensor, b: Tensor) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cleanfid.fid_from_feats(a.numpy(), b.numpy())

    return {
        OURS: lambda a, b: FrechetDistance(moments(b, device))(moments(a, device)),
        FIDELITY: of_fidelity,
        CLEAN: of_clean,
    }


def clock(work: Callable[[], object], device: str) -> float:
    """Seconds of CPU time of the process, which other work on the machine leaves alone; on a GPU those of the wall."""
    if device == "cuda":
        torch.cuda.synchronize()
    now = time.perf_counter if device == "cuda" else time.process_time
    start = now()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


class Pixels(Features):
    """2048 features that cost next to nothing: what is left is what the statistics take."""

    num_features, batch_size = 2048, 50

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2048].float()


def peak(way: str, count: int) -> float:
    """MiB at the peak of a fresh process that takes FID of `count` images, beyond what it took before the first."""
    command = [sys.executable, __file__, "peak", way, str(count)]
    return round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 1)


def measure_peak(way: str, count: int) -> None:
    kept, features = [], Pixels()
    if "Inception" in way:
        file = Path(tempfile.mkdtemp()) / "weights.pth"
        random_weights(file)
        features = Inception(file)
        file.unlink()
    reference = Reference(Statistics(torch.zeros(2048).double(), torch.eye(2048).double(), None), "a unit Gaussian")
    scores, generator = Scores(features, reference), torch.Generator().manual_seed(0)
    for k in range(0, count + 50, 50):  # the first batch warms up
        images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=generator)
        if "kept" in way:
            kept.append(extract(features, images)[0].numpy())
        else:
            scores.update(images)
        if k == 0:
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
            before = memory_of("VmHWM")
    if kept:
        np.cov(np.concatenate(kept), rowvar=False)
    else:
        scores.moments.compute()
    print((memory_of("VmHWM") - before) / 1024)


def memory_of(field: str) -> int:
    """In KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def of_times(part: str, seconds: dict[str, float], images: int) -> list[list[object]]:
    rows: list[list[object]] = []
    for way, time_taken in seconds.items():
        ratio = round(time_taken / seconds[OURS], 3)
        rows.append([part, way, images, round(time_taken, 3), round(images / time_taken, 2), ratio, ""])
        print(*rows[-1], sep="  ", flush=True)
    return rows


def report(rows: list[list[object]]) -> str:
    lines = ["| Inception, from PNGs | images/s | time over ours |", "|---|---:|---:|"]
    lines += [f"| {row[1]} | {row[4]} | {row[5]} |" for row in rows if row[0] == "images"]
    lines += ["", "| from features to FID | seconds | time over ours |", "|---|---:|---:|"]
    lines += [f"| {row[1]} | {row[3]} | {row[5]} |" for row in rows if row[0] == "statistics"]
    lines += ["", "| FID of images | images | peak MiB |", "|---|---:|---:|"]
    lines += [f"| {row[1]} | {row[2]} | {row[6]} |" for row in rows if row[0] == "memory"]
    return "\n".join(lines) + "\n\n"


def caption(device: str, batch_size: int, size: int, turns: int, features: int, apart: float, worst: float) -> str:
    names = ("ersde-lit", "torch", "torchmetrics", "torch-fidelity", "clean-fid", "scipy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    clocked = "wall time" if device == "cuda" else "CPU time of the process"
    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    return (
        f"Random weights of Inception (seed 0), {size}x{size} PNGs (seed 0), batches of {batch_size}, one process "
        f"without workers, {clocked}, images by the median of {turns} turns, statistics once. "
        f"Features of ours and torch-fidelity differ by {apart:.1e} of the largest; "
        f"clean-fid resizes as it recommends (bicubic, PIL), so its are others. "
        f"Statistics: {features} vectors of 2048 features for each of two sets (seeds 0 and 1); the three FIDs agree "
        f"to {worst:.1e}. Of ours, `further sets` is one set against a known reference; the others' times are of both "
        f"sets. Memory: beyond that of the process before the first batch; `ours` and `features kept`, as the "
        f"others do it, with features that cost nothing. "
        f"{where}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, {versions}.\n"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        measure_peak(sys.argv[2], int(sys.argv[3]))
    else:
        auto_cli(main, as_positional=False)
