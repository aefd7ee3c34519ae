"""Evaluation run: samples and measures the images of each cell, on all ranks."""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ersde_lit.data import ImageDataModule
from ersde_lit.data.decode import Exif
from ersde_lit.errors import UserError
from ersde_lit.metrics.image_files import image_files
from ersde_lit.metrics.protocol import Protocol, title
from ersde_lit.metrics.scores import Scores
from ersde_lit.progress import console
from ersde_lit.ranks import Ranks
from ersde_lit.sampling.formats import read_meta
from ersde_lit.sampling.run import Job, complete
from ersde_lit.sampling.work import Work
from ersde_lit.sweeps.cells import REAL, Cell, Cells, Measured, Record, record
from ersde_lit.sweeps.pictures import keep_picture

# (rank, ranks) to uint8 [n, C, H, W]: every ranks-th batch, from number rank on
Batches = Callable[[int, int], Iterable[Tensor]]
BATCH = 100  # images; what is dealt to the ranks


def measure(scores: Scores, batches: Batches, ranks: Ranks) -> Measured:
    """Scores over the images of all ranks; called by all. Raises UserError if they cannot be read or measured."""
    scores.to(ranks.device).reset()
    with ranks.fail_together():
        for images in batches(ranks.rank, ranks.count):
            scores.update(images)
    with warnings.catch_warnings(), ranks.fail_together():
        warnings.simplefilter("ignore")  # the notes say the same
        values = scores.compute()
    return Measured(values, scores.num_images, scores.notes, scores.image_shape)


def measure_images(path: str | Path, scores: Scores, ranks: Ranks, exif: Exif = "apply") -> Measured:
    """Scores of images on disk: a folder, zip or npz; `exif` as for `image_files`."""
    with ranks.fail_together():
        images = image_files(path, exif=exif)
    measured = measure(scores, lambda rank, of: images.batches(BATCH, rank, of), ranks)
    return measured._replace(notes=(*measured.notes, *(f"{path}: {note}" for note in images.notes)))


def measure_held_out(images: Tensor, scores: Scores, ranks: Ranks) -> Measured:
    """Scores of held-out images, uint8 [n, C, H, W]: those of a perfect model."""
    return measure(scores, lambda rank, of: images.split(BATCH)[rank::of], ranks)


@dataclass(frozen=True)
class Sweep:
    """Sweep over cells that are not measured yet. Its methods are called by all ranks.

    Images that are sampled here are deleted once measured, unless `keep_images`.
    """

    store: Cells
    scores: Scores
    protocol: Protocol
    ranks: Ranks
    keep_images: bool

    def cell(self, cell: Cell) -> None:
        """Samples what is missing of a cell, measures it from disk and stores it; NaN if a sample is not finite."""
        there, path, finished = False, Path(), False
        with self.ranks.fail_together():
            if self.ranks.is_first and not (there := self.store.find(cell, self.scores.metrics) is not None):
                path, finished = self.store.place(cell)
        there, path, finished = self.ranks.of_first((there, path, finished))
        if there:
            return
        of_cell: dict[str, Any] = {"nfe": cell.job.nfe, "asked": cell.asked, "seeds": cell.meta["seeds"]}
        if not finished:
            start, work = time.monotonic(), self.store.work(cell, path)
            if reason := self._failure(work, cell.job):
                if self.ranks.is_first:
                    work.clean()
                    nothing = Measured(dict.fromkeys(self.scores.metrics, math.nan), 0, (f"{cell}: {reason}",))
                    self._keep(record(cell.sampler, nothing, self.protocol, description=cell.meta, **of_cell))
                return
            self.ranks.gather(None)  # the first rank has put them in their place
            of_cell["seconds"] = round(time.monotonic() - start, 1)
        measured = measure_images(path, self.scores, self.ranks)
        with self.ranks.fail_together():
            if (count := measured.images) != len(cell.seeds):
                raise UserError(f"{path} holds {count} images, not the {len(cell.seeds)} of {cell}: remove it")
            if self.ranks.is_first:
                keep_picture(self.store.folder, cell, path)
                self._keep(record(cell.sampler, measured, self.protocol, description=read_meta(path), **of_cell))
                if not self.keep_images:
                    self.store.delete(path)

    def real(self, data: ImageDataModule, count: int) -> None:
        """Measures at most `count` held-out images ("test"): the score of a perfect model."""
        images = data.held_out(count)
        its = {"held_out": hashlib.sha256(images.numpy().tobytes()).hexdigest()}
        if self.ranks.of_first(self.store.find_real(len(images), its, self.scores.metrics)) is not None:
            return
        measured = measure_held_out(images, self.scores, self.ranks)
        with self.ranks.fail_together():
            if self.ranks.is_first:
                self._keep(record(REAL, measured, self.protocol, description=its))

    def _failure(self, work: Work, job: Job) -> str:
        """Samples the images of a cell; returns, on all ranks, which sample is not finite, or an empty string."""
        try:
            complete(work, job, self.ranks)
        except (FloatingPointError, SystemExit) as error:
            cause = error.__cause__ if isinstance(error, SystemExit) else error
            if not isinstance(cause, FloatingPointError):
                raise
            return str(cause)
        return ""

    def _keep(self, new: Record) -> None:
        """Stores a record, and prints its metrics in one line."""
        self.store.add(new)
        what = new["sampler"]
        if new["nfe"] is not None:
            what += f", NFE {new['nfe']}, seeds {new['seeds']}"
        values = ", ".join(f"{title(name)} {value:.4g}" for name, value in new["scores"].items())
        console.print(f"{what}: {values} ({new['images']:,} images)", markup=False, soft_wrap=True)
