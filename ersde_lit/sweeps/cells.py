"""What `evaluate` measures, cell by cell: kept as soon as it is measured, so that a killed evaluation goes on.

In the folder lie `cells.jsonl`, a line a cell, replaced as a whole, and `images/`, where each cell's images are made
block by block, as `sample` makes them, and from where they are measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ersde_lit.errors import UserError
from ersde_lit.files import check_out, disk_errors
from ersde_lit.metrics.protocol import Protocol, size_in_words
from ersde_lit.sampling.description import Meta, differences
from ersde_lit.sampling.formats import Npz, read_meta
from ersde_lit.sampling.run import Job
from ersde_lit.sampling.work import Work

Record = dict[str, Any]  # what `record` makes
REAL = "real, held out"
MADE_HERE = "made_by"  # in the description of images that may be deleted once they are measured


@dataclass(frozen=True)
class Cell:
    """The images of one sampler at one NFE from one set of seeds.

    Attributes:
        sampler: its label.
        job: how they are made.
        seeds: what from.
        meta: their description, that which `sample` gives the same images.
        asked: the NFE asked for; the job's own may be one less.
    """

    sampler: str
    job: Job
    seeds: Sequence[int]
    meta: Meta
    asked: int

    @property
    def name(self) -> str:
        """Of its file."""
        text = re.sub(r"[^\w.+=-]", "_", f"{self.sampler}-nfe{self.job.nfe}-{self.meta['seeds']}")
        return text if len(text) <= 120 else f"{text[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def __str__(self) -> str:
        return f"{self.sampler}, NFE {self.job.nfe}, seeds {self.meta['seeds']}"


class Cells:
    """The cells of a folder.

    Args:
        out: the folder; made when something is kept.

    Raises:
        ValueError: it cannot be written, or is not of `evaluate`.
    """

    def __init__(self, out: str | Path) -> None:
        check_out(out)
        self.out, self.folder = out, Path(out)
        self.path, self.images = self.folder / "cells.jsonl", self.folder / "images"
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--out {out} is a file; name a folder")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The place is this process's. Raises ValueError where another is at work there."""
        with disk_errors(self.out):
            self.images.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", blocking=False)
            try:
                lock.acquire()
            except Timeout:
                raise UserError(f"--out {self.out}: another process is working on it; wait for it to end") from None
            except NotImplementedError:
                pass  # a file system without locks
        try:
            yield
        finally:
            lock.release()

    def read(self) -> list[Record]:
        """All that is measured, in that order; raises ValueError where the file is damaged."""
        try:
            lines = self.path.read_text().splitlines()
            return [dict(json.loads(line)) for line in lines]
        except FileNotFoundError:
            return []
        except (ValueError, OSError) as error:
            raise UserError(f"{self.path} is damaged ({error}): move it away") from None

    def check(self, protocol: Protocol) -> None:
        """Raises ValueError where cells were measured otherwise: their numbers cannot stand beside new ones."""
        for record in self.read():
            if differing := protocol.differences(record["protocol"]):
                raise UserError(
                    f"--out {self.out} holds cells of another evaluation, it differs in {differing}: choose another"
                )

    def find(self, cell: Cell, metrics: Sequence[str]) -> Record | None:
        """The cell's record; None where it, or one of these metrics, has not been measured.

        Raises:
            ValueError: the cell of this name is of other images.
        """
        kept = self._kept((cell.sampler, cell.job.nfe, cell.meta["seeds"]))
        if kept is None:
            return None
        if differing := differences(kept["description"], cell.meta):
            raise UserError(
                f"--out {self.out}: {cell} was measured on other images, they differ in {differing}: choose another "
                "--out, or another label"
            )
        return kept if set(metrics) <= kept["scores"].keys() else None

    def find_real(self, images: int, metrics: Sequence[str]) -> Record | None:
        """The record of so many held-out images; None without one."""
        kept = self._kept((REAL, None, None))
        same = kept is not None and kept["images"] == images and set(metrics) <= kept["scores"].keys()
        return kept if same else None

    def of_sets(self, seeds: Collection[str]) -> list[Record]:
        """The cells of these sets of seeds, whichever their samplers, and what was measured beside them."""
        return [record for record in self.read() if record["seeds"] is None or record["seeds"] in seeds]

    def _kept(self, key: tuple[Any, Any, Any]) -> Record | None:
        return next((record for record in self.read() if _key(record) == key), None)

    def add(self, record: Record) -> None:
        """Keeps a record. One of the same images keeps its place, and what was measured on them before."""
        records = {_key(kept): kept for kept in self.read()}
        before = records.get(_key(record))
        if before is not None and before["images"] == record["images"]:  # `find` has seen that they are the same
            record = {**record, **{name: {**before[name], **record[name]} for name in ("scores", "protocol")}}
        text = "".join(f"{json.dumps(one)}\n" for one in {**records, _key(record): record}.values())
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        with disk_errors(self.out):
            self.folder.mkdir(exist_ok=True)
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)

    def place(self, cell: Cell) -> tuple[Path, bool]:
        """Where the cell's images are, whatever their name, or will be; and whether they are all there.

        Raises:
            ValueError: other images are in their place.
        """
        for path in sorted(self.images.glob("*.npz")):
            with suppress(ValueError):
                if not differences(read_meta(path), cell.meta):
                    return path, True
        path = self.images / f"{cell.name}.npz"
        try:
            return path, self.images.is_dir() and self.work(cell, path).finished()
        except ValueError as error:
            reason = str(error).partition(";")[0].removeprefix("--out ")
            raise UserError(f"other images are in the place of {cell}: {reason}; move them away") from None

    def work(self, cell: Cell, path: Path) -> Work:
        """The run that makes them."""
        return Work(path, Npz(), cell.seeds, cell.meta["options"]["batch_size"], cell.meta)

    def delete(self, path: Path) -> None:
        """Removes images that were made here; those that somebody put there stay."""
        with disk_errors(self.out):
            if MADE_HERE in read_meta(path):
                path.unlink()


class Measured(NamedTuple):
    """Scores by metric, of how many images, what weakens the scores, and how large the images are (C, H, W)."""

    scores: dict[str, float]
    images: int
    notes: tuple[str, ...]
    image_shape: tuple[int, ...] | None = None


def record(sampler: str, measured: Measured, protocol: Protocol, **of_cell: Any) -> Record:
    """What is kept: plain data. Images that were not sampled here have nothing `of_cell`."""
    cell = {name: of_cell.get(name) for name in ("nfe", "asked", "seeds", "seconds", "description")}
    return {
        "sampler": sampler,
        **cell,
        "images": measured.images,
        "image_size": None if measured.image_shape is None else size_in_words(measured.image_shape),
        "scores": measured.scores,
        "notes": [*measured.notes],
        "protocol": protocol.plain,
    }


def _key(record: Record) -> tuple[Any, Any, Any]:
    return record["sampler"], record["nfe"], record["seeds"]
