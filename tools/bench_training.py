"""What training costs: our module under Lightning's Trainer against a plain PyTorch loop.

    OMP_NUM_THREADS=1 python tools/bench_training.py --steps [10,2] --runs [2,1]      # minutes; made what is kept

Writes tools/results/training.{csv,md}. On a GPU, with the step our users run:

    python tools/bench_training.py --device cuda --compile true --precision bf16-mixed --batches [256,128] \
        --steps [200,50] --runs [5,5] --warmup 20 --name training_gpu

The plain loop does what EDM's does (Karras et al. 2022): noise from one generator, loss, backward, nan_to_num of each
gradient, Adam with a warm-up of its rate, moving average tensor by tensor. Network, preconditioning, data and precision
are the same in both; it is never compiled. The two take turns, each turn in a fresh process.
"""

import csv
import logging
import os
import platform
import re
import resource
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib import metadata
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jsonargparse import auto_cli
from torch import Tensor

from ersde_lit.data import ImageDataModule, Split
from ersde_lit.denoisers import Denoiser
from ersde_lit.networks import Network, SongUNet, UNet
from ersde_lit.training import EMA, AdamW, DiffusionModule

RESULTS = Path(__file__).parent / "results"
PARTS = ["data", "noise", "forward", "backward", "optimiser", "EMA", "rest"]
HEADER = ["network", "batch", "loop", "steps", "images_s", "wall_ms", "peak_mib", *(f"{p.lower()}_ms" for p in PARTS)]
OURS, PLAIN = "ours, Lightning", "plain loop"
NETWORKS = {
    "U-Net": partial(UNet, (3, 32, 32), width=24, head_width=24),
    "DDPM++": partial(SongUNet, 32, 3, 3, augment_dim=9, channel_mult=[2, 2, 2], dropout=0.13),  # cifar10_edm_ddpmpp
}
SEED, LR, BETAS, WARMUP, HALF_LIFE, RAMP_UP = 0, 1e-3, (0.9, 0.999), 10_000_000, 500_000, 0.05


def main(
    device: Literal["cpu", "cuda"] = "cpu",
    batches: tuple[int, int] = (16, 4),
    steps: tuple[int, int] = (20, 3),
    runs: tuple[int, int] = (3, 2),
    warmup: int = 1,
    compile: bool = False,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    name: str = "training",
) -> None:
    """Images a second, peak memory and milliseconds of each part of a step.

    Args:
        device: cpu or cuda.
        batches, steps, runs: of the small U-Net and of CIFAR-10's DDPM++: images a step, steps measured in a run, runs.
        warmup: steps before those, not measured.
        compile: torch.compile the network of our loop.
        precision: of both loops.
        name: of the files written.
    """
    rows = []
    for title, batch, count, turns in zip(NETWORKS, batches, steps, runs, strict=True):
        found: dict[str, list[dict[str, Any]]] = {OURS: [], PLAIN: []}
        for turn in range(turns):
            for loop in (OURS, PLAIN) if turn % 2 == 0 else (PLAIN, OURS):
                # Waiting for a GPU at each part would slow the whole: its split is another run's.
                for split in (False, True) if device == "cuda" else (True,):
                    with get_context("spawn").Pool(1) as pool:
                        arguments = (title, loop, device, batch, count, warmup, compile, precision, split)
                        found[loop].append(pool.apply(trial, arguments))
        for loop, trials in found.items():
            rows.append([title, batch, loop, *summary(trials, batch)])
            print(" ".join(map(str, rows[-1])), flush=True)
    with (RESULTS / f"{name}.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    (RESULTS / f"{name}.md").write_text(report(rows, device, warmup, compile, precision))


class Meter:
    """Time of each part of a step; a lap is the time since the last one.

    On a CPU laps are CPU time of this process, which others on the machine hardly change; on a GPU they are wall time,
    and wait for it. Without `split`, only whole steps are timed, and waited for at their two ends alone.
    """

    def __init__(self, device: str, steps: int, warmup: int, split: bool) -> None:
        self.on_gpu, self.warmup, self.total, self.split = device == "cuda", warmup, warmup + steps, split
        self.clock = time.perf_counter if self.on_gpu else time.process_time
        self.last, self.begun = 0.0, 0
        self.walls: list[float] = []  # at the start of each measured step, and the end of the last
        self.laps: list[dict[str, float]] = []  # of each measured step

    def step(self) -> bool:
        """A step begins, and the one before ends; False if that was the last."""
        self.lap("rest")
        if self.on_gpu and self.begun in (self.warmup, self.total):
            torch.cuda.synchronize()
        if self.begun >= self.warmup:
            self.walls.append(time.perf_counter())
            self.laps.append(dict.fromkeys(PARTS, 0.0))
        self.begun += 1
        return self.begun <= self.total

    def lap(self, part: str) -> None:
        if not self.split:
            return
        if self.on_gpu:
            torch.cuda.synchronize()
        now = self.clock()
        if self.laps:
            self.laps[-1][part] += now - self.last
        self.last = now


def timed(meter: Meter, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        meter.lap("rest")
        result = call(*arguments)
        meter.lap(part)
        return result

    return run


class Noise(ImageDataModule):
    """Random images, enough for one epoch of all steps."""

    image_shape, num_classes = (3, 32, 32), 0
    meter: Meter

    def load(self) -> dict[str, Split]:
        count, generator = self.batch_size * (self.meter.total + 1), torch.Generator().manual_seed(SEED)
        images = torch.randint(0, 256, (count, *self.image_shape), generator=generator, dtype=torch.uint8)
        return {"train": Split(images, torch.zeros(count, dtype=torch.int64))}

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.dataset.__getitems__ = timed(self.meter, "data", loader.dataset.__getitems__)
        return loader


class TimedModule(DiffusionModule):
    """Ours, with laps at its hooks; `meter` is set before it is fitted."""

    meter: Meter

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.meter.lap("data")  # the batch was moved to the device
        return None if self.meter.step() else -1  # ends the epoch

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.meter.lap("rest")
        return super().training_step(batch, batch_idx)

    def on_before_backward(self, loss: Tensor) -> None:
        self.meter.lap("forward")

    def on_after_backward(self) -> None:
        self.meter.lap("backward")

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        configured["optimizer"].register_step_post_hook(lambda *_: self.meter.lap("optimiser"))
        return configured


def trial(
    title: str, loop: str, device: str, batch: int, steps: int, warmup: int, compile: bool, precision: Any, split: bool
) -> dict[str, Any]:
    """One run, in a process of its own."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    pl.seed_everything(SEED)
    torch.backends.cudnn.benchmark = True
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    meter = Meter(device, steps, warmup, split)
    data = Noise(batch)
    data.meter = meter
    (lightning if loop == OURS else plain)(NETWORKS[title](), data, meter, device, compile, precision)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else (after - before) / 2**10  # Linux: KiB
    walls = [end - start for start, end in pairwise(meter.walls)]
    whole = [mean(walls)] if device == "cuda" else walls
    return {"split": split, "walls": whole, "laps": meter.laps[:-1], "peak": peak}


def lightning(network: Network, data: Noise, meter: Meter, device: str, compile: bool, precision: Any) -> None:
    module = TimedModule(network, optimizer=AdamW(LR, BETAS, warmup=WARMUP), ema=EMA(HALF_LIFE, RAMP_UP))
    module.meter, module.ema = meter, SimpleNamespace(update=timed(meter, "EMA", module.ema.update))
    module.denoiser.register_forward_pre_hook(lambda *_: meter.lap("noise"))
    if compile:
        module.denoiser.network.compile()
    trainer = pl.Trainer(
        accelerator=device, devices=1, precision=precision, max_epochs=1, benchmark=True, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


def plain(network: Network, data: Noise, meter: Meter, device: str, compile: bool, precision: Any) -> None:
    denoiser = Denoiser(network).to(device).train()
    average = deepcopy(denoiser).requires_grad_(False).eval()
    denoiser.register_forward_pre_hook(lambda *_: meter.lap("noise"))
    optimizer = torch.optim.Adam(denoiser.parameters(), LR, BETAS)
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")
    batches, seen = iter(data.train_dataloader()), 0
    while meter.step():
        x0 = next(batches)[0].to(device, non_blocking=True)
        meter.lap("data")
        optimizer.zero_grad()
        sigma = (1.2 * torch.randn(len(x0), device=device) - 1.2).exp()
        level = sigma.view(-1, 1, 1, 1)
        with autocast:
            error = denoiser(x0 + level * torch.randn_like(x0), sigma) - x0
            loss = ((level**2 + 0.25) / (0.5 * level) ** 2 * error**2).mean()
        meter.lap("forward")
        loss.backward()
        meter.lap("backward")
        for group in optimizer.param_groups:
            group["lr"] = LR * min(seen / WARMUP, 1)
        for weight in denoiser.parameters():
            if weight.grad is not None:
                torch.nan_to_num(weight.grad, nan=0, posinf=1e5, neginf=-1e5, out=weight.grad)
        optimizer.step()
        meter.lap("optimiser")
        seen += len(x0)
        decay = 0.5 ** (len(x0) / min(HALF_LIFE, RAMP_UP * seen))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), denoiser.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        meter.lap("EMA")


def summary(trials: list[dict[str, Any]], batch: int) -> list[Any]:
    """[steps measured, images a second, wall ms a step, peak MiB, ms of each part]; medians."""
    whole = [t for t in trials if not t["split"]] or trials
    laps = [lap for t in trials if t["split"] for lap in t["laps"]]
    seconds = median(wall for t in whole for wall in t["walls"])
    parts = [round(1e3 * median(lap[part] for lap in laps), 3) for part in PARTS]
    peak = round(median(t["peak"] for t in whole))
    return [len(laps), round(batch / seconds, 3), round(1e3 * seconds, 2), peak, *parts]


def report(rows: list[list[Any]], device: str, warmup: int, compile: bool, precision: str) -> str:
    clock = "ms" if device == "cuda" else "CPU ms"
    lines = [
        f"| network, batch | loop | images/s | wall ms a step | peak MiB | {clock} a step | {' | '.join(PARTS)} |",
        "|---|---|" + "---:|" * (4 + len(PARTS)),
    ]
    for title, batch, loop, _, speed, wall, peak, *parts in rows:
        cells = [f"{speed:.2f}", f"{wall:.1f}", f"{peak}", f"{sum(parts):.1f}", *(f"{part:.2f}" for part in parts)]
        lines.append(f"| {title}, {batch} | {loop} | {' | '.join(cells)} |")
    sizes = ", ".join(f"{t} {sum(p.numel() for p in net().parameters()) / 1e6:.2f} M" for t, net in NETWORKS.items())
    counts = ", ".join(f"{title} {steps}" for title, _, loop, steps, *_ in rows if loop == OURS)
    if device == "cuda":
        where, memory = torch.cuda.get_device_name(), "allocated on the GPU; parts are of other runs, that wait for it"
    else:
        cpu = re.findall("model name.*: (.*)", Path("/proc/cpuinfo").read_text())[0]
        where = f"{cpu}, {torch.get_num_threads()} thread(s)"
        memory = "resident above that of a process with everything imported; parts are CPU time of the process"
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("ersde-lit", "torch", "lightning"))
    return "\n".join(lines) + (
        f"\n\nParameters: {sizes}; 3x32x32, {precision}{', ours compiled' if compile else ''}, not augmented, seed "
        f"{SEED}. Medians of steps ({counts} each loop), {warmup} of each run left out; runs in turn, each in a fresh "
        f"process; load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores. Memory: peak {memory}. "
        f"Data: batch to device; noise: seeds, noise and levels; optimiser: nan_to_num, rate, Adam (ours fused); "
        f"rest: Lightning's loop, schedule, logging. "
        f"{where}, {platform.system()} {platform.machine()}, Python {platform.python_version()}, {versions}.\n"
    )


if __name__ == "__main__":
    auto_cli(main)
