"""Sampling run: blocks of seeds are distributed over ranks, sampled and stored; the first rank assembles them."""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ersde_lit.denoisers import Denoiser
from ersde_lit.errors import UserError
from ersde_lit.files import disk_errors
from ersde_lit.progress import console, progress
from ersde_lit.ranks import Ranks
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.grid import image_grid, save_png
from ersde_lit.sampling.images import quantise
from ersde_lit.sampling.labels import labels_of
from ersde_lit.sampling.restored import Restoration
from ersde_lit.sampling.views import MARK, Preview
from ersde_lit.sampling.work import Work
from ersde_lit.solvers import Sampler
from ersde_lit.solvers.loop import Callback


@dataclass(frozen=True)
class Job:
    """Denoiser, sampler and settings that turn seeds into images.

    Attributes:
        labels: as for `choose_labels`.
        dtype: of the network's arithmetic, by autocast; the state stays in float32.
        allow_tf32: as for `generate`.
        to_bytes: makes uint8 images of float samples, such as a `Decoder`, which need not have their shape.
    """

    denoiser: Denoiser
    sampler: Sampler
    nfe: int
    labels: str | None = None
    dtype: torch.dtype = torch.float32
    allow_tf32: bool = False
    to_bytes: Callable[[Tensor], Tensor] = quantise

    def labels_of(self, seeds: Sequence[int]) -> Tensor | None:
        return labels_of(self.denoiser, self.labels, seeds)

    def count(self, seeds: Sequence[int]) -> int:
        """How many inputs of the network there are for these images."""
        return len(seeds)

    def images(self, seeds: Sequence[int], batch_size: int, callback: Callback | None = None) -> Tensor:
        """Samples the images of these seeds, uint8 [n, C, H, W] on the CPU, `batch_size` at a time."""
        device = next(self.denoiser.parameters()).device
        blocks = generate(
            self.denoiser, self.sampler, seeds, self.nfe, self.labels_of(seeds),
            batch_size=batch_size, callback=callback, allow_tf32=self.allow_tf32,
        )  # fmt: skip
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            return torch.cat([self.to_bytes(block.images).cpu() for block in blocks])


class Cost(NamedTuple):
    """Counts and costs of a run."""

    images: int  # sampled now, by all ranks
    seconds: float
    memory: int  # bytes, the peak of the rank that needed most
    ranks: int

    def __str__(self) -> str:
        speed = f"{self.images:,} now, {self.images / self.seconds:.3g} a second"
        return f"{speed}; peak memory {self.memory / 2**30:.2g} GiB" + " a rank" * (self.ranks > 1)


def complete(work: Work, job: Job | Restoration, ranks: Ranks, preview: Preview | None = None) -> Cost:
    """Samples the missing blocks of a run and publishes it; to be called by all ranks.

    Blocks are dealt in turn; shares may be uneven, and a rank whose disk fails leaves the others at work. A block for
    which memory does not suffice is sampled in halves, and so are all that follow, on every rank and when resumed.

    Raises:
        ValueError: as `Work`; or not even one image fits into memory, or a rank has died. What is done is kept.
        FloatingPointError: a sample was not finite.
    """
    first = ranks.is_first
    missing: list[int] = []
    with ranks.fail_together():
        if first:
            missing = work.begin()
    missing = ranks.of_first(missing)
    before, start = len(work.seeds), time.monotonic()
    if first and (before := work.images_done()):
        console.print(f"{before:,} of {len(work.seeds):,} images are there: going on")
    try:
        with progress(work.images_done, len(work.seeds), shown=first), ranks.fail_together():
            mine = missing[ranks.rank :: ranks.count]
            _sample(work, mine, job, ranks.local_rank, preview if first else None)
    except (ValueError, OSError, FloatingPointError):
        if first and not work.done():
            work.clean()  # there is nothing to go on with
        raise
    memory = max(ranks.gather(peak_memory(ranks.device)))
    seconds = time.monotonic() - start
    if first:
        labels = job.labels_of(work.seeds)
        halved = {"halved_to": work.chunk} if work.chunk < (work.at_a_time or work.batch_size) else {}
        work.publish(None if labels is None else labels.tolist(), **halved, device=_name(ranks.device))
    return Cost(len(work.seeds) - before, seconds, memory, ranks.count)


def trajectory(job: Job, seeds: Sequence[int], path: str | Path) -> None:
    """Draws the x0 predictions of these seeds: a row an image, a column a step."""
    steps: list[Tensor] = []
    job.images(seeds, len(seeds), lambda i, lam, y, x0: steps.append(job.to_bytes(x0).cpu()))
    sheet = rearrange(steps, "steps n c h w -> (n steps) c h w")
    with disk_errors(path, "trajectory"):
        save_png(image_grid(sheet, columns=len(steps)), Path(path), MARK)


def _sample(
    work: Work, numbers: Sequence[int], job: Job | Restoration, local_rank: int, preview: Preview | None
) -> None:
    parent = os.getppid()
    for number in numbers:
        seeds = work.block(number)
        images = _fitting(work, job, seeds, preview)
        if local_rank and os.getppid() != parent:
            raise SystemExit(1)  # the first rank was killed: whoever comes next begins with what is there
        work.save(number, work.format.encode([rearrange(one, "c h w -> h w c").numpy() for one in images], seeds))
        if preview:
            preview.show(images)


def _fitting(work: Work, job: Job | Restoration, seeds: Sequence[int], preview: Preview | None) -> Any:
    """Samples the images of these seeds, as many at a time as fit into memory."""
    while True:
        size = min(work.chunk, job.count(seeds))
        try:
            return job.images(seeds, size, preview)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        # Not in the except clause: there, the traceback still holds the tensors.
        torch.cuda.empty_cache()
        if size == 1:
            raise UserError("out of memory with one image at a time: use a smaller network, or --precision bf16")
        if work.shrink(half := -(-size // 2)):
            console.print(f"out of memory with {size} images at a time: going on with {half}")


def _is_out_of_memory(error: Exception) -> bool:
    words = "can't allocate memory", "out of memory", "ALLOC_FAILED"
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes, of the GPU or else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
