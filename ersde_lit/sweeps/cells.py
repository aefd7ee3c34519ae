"""Results of `evaluate`, stored cell by cell, so that an interrupted evaluation is resumed.

The folder holds `cells.jsonl`, one line a cell; `images/`, where the images of each cell are sampled as `sample` does
and read for measuring; and `pictures/` of the first of them, which stay.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ersde_lit.errors import UserError
from ersde_lit.files import check_out, disk_errors, locked, write_text
from ersde_lit.metrics.protocol import Protocol, size_in_words
from ersde_lit.sampling.description import Meta, differences
from ersde_lit.sampling.formats import Npz, read_meta
from ersde_lit.sampling.run import Job
from ersde_lit.sampling.work import Work

Record = dict[str, Any]  # what `record` makes
KEYS = {"sampler", "nfe", "asked", "seeds", "images", "scores", "notes", "protocol", "seconds", "description"}
REAL = "real, held out"
MADE_HERE = "made_by"  # in the description of images that may be deleted once they are measured


@dataclass(frozen=True)
class Cell:
    """One sampler at one NFE with one set of seeds.

    Attributes:
        sampler: its label.
        meta: description of the images, as `sample` writes it.
        asked: the NFE asked for; the job's own may be one less.
    """

    sampler: str
    job: Job
    seeds: Sequence[int]
    meta: Meta
    asked: int

    def __str__(self) -> str:
        return f"{self.sampler}, NFE {self.job.nfe}, seeds {self.meta['seeds']}"


def file_name(sampler: str, nfe: int, seeds: str) -> str:
    """Name of a cell's files, without their endings."""
    text = re.sub(r"[^\w.+=-]", "_", f"{sampler}-nfe{nfe}-{seeds}")
    return text if len(text) <= 120 else f"{text[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Cells:
    """Stored results in a folder, which is made when something is kept."""

    def __init__(self, out: str | Path) -> None:
        check_out(out)
        self.out, self.folder = out, Path(out)
        self.path, self.images = self.folder / "cells.jsonl", self.folder / "images"
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--out {out} is a file; name a folder")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Locks the folder, and holds a place for images. Raises UserError where another process holds it."""
        with ExitStack() as stack:
            with disk_errors(self.out):
                self.folder.mkdir(parents=True, exist_ok=True)
                busy = f"--out {self.out}: another process is working on it; wait for it to end"
                stack.enter_context(locked(self.folder / ".lock", busy))
                self.images.mkdir(exist_ok=True)
            try:
                yield
            finally:
                with suppress(OSError):  # some images are kept
                    self.images.rmdir()

    def read(self) -> list[Record]:
        """All records in order of measurement; raises UserError if the file is damaged."""
        try:
            records = [json.loads(line) for line in self.path.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except (ValueError, OSError) as error:
            raise UserError(f"{self.path} is damaged ({error}): move it away") from None
        if not all(isinstance(record, dict) and record.keys() >= KEYS for record in records):
            raise UserError(f"{self.path} is damaged (a line is no record): move it away")
        return records

    def check(self, protocol: Protocol) -> None:
        """Raises UserError if stored cells were measured by another protocol, so that numbers cannot be compared."""
        for record in self.read():
            if differing := protocol.differences(record["protocol"]):
                raise UserError(
                    f"--out {self.out} holds cells of another evaluation, it differs in {differing}: choose another"
                )

    def find(self, cell: Cell, metrics: Sequence[str]) -> Record | None:
        """Record of the cell; None if it, or one of these metrics, has not been measured."""
        kept = self._kept((cell.sampler, cell.job.nfe, cell.meta["seeds"]))
        if kept is None:
            return None
        if differing := differences(kept["description"], cell.meta):
            raise UserError(
                f"--out {self.out}: {cell} was measured on other images, they differ in {differing}: choose another "
                "--out, or another label"
            )
        return kept if set(metrics) <= kept["scores"].keys() else None

    def find_real(self, images: int, description: Mapping[str, str], metrics: Sequence[str]) -> Record | None:
        """Record of so many held-out images, of this description; None if not measured."""
        kept = self._kept((REAL, None, None))
        if kept is None or kept["images"] != images or not set(metrics) <= kept["scores"].keys():
            return None
        return kept if kept["description"] in (None, description) else None  # None: of an earlier version

    def of_sets(self, seeds: Collection[str]) -> list[Record]:
        """Records of these sets of seeds, of any sampler, and records without seeds."""
        return [record for record in self.read() if record["seeds"] is None or record["seeds"] in seeds]

    def _kept(self, key: tuple[Any, Any, Any]) -> Record | None:
        return next((record for record in self.read() if _key(record) == key), None)

    def add(self, record: Record) -> None:
        """Stores a record; it is merged with an earlier one of the same images, in its place."""
        records = {_key(kept): kept for kept in self.read()}
        before = records.get(_key(record))
        of_images = ("images", "description") if record["sampler"] == REAL else ("images",)  # `find` compares the rest
        if before is not None and all(before[name] == record[name] for name in of_images):
            record = {**record, **{name: {**before[name], **record[name]} for name in ("scores", "protocol")}}
            record["notes"] = [*dict.fromkeys([*before["notes"], *record["notes"]])]
        text = "".join(f"{json.dumps(one)}\n" for one in {**records, _key(record): record}.values())
        with disk_errors(self.out):
            self.folder.mkdir(exist_ok=True)
            write_text(self.path, text)

    def place(self, cell: Cell) -> tuple[Path, bool]:
        """File of the cell's images, present (under any name) or to be written, and whether it is complete."""
        for path in sorted(self.images.glob("*.npz")):
            with suppress(ValueError):
                if not differences(read_meta(path), cell.meta):
                    return path, True
        path = self.images / f"{file_name(cell.sampler, cell.job.nfe, cell.meta['seeds'])}.npz"
        try:
            return path, self.images.is_dir() and self.work(cell, path).finished()
        except ValueError as error:
            reason = str(error).partition(";")[0].removeprefix("--out ")
            raise UserError(f"other images are in the place of {cell}: {reason}; move them away") from None

    def work(self, cell: Cell, path: Path) -> Work:
        """Sampling run of the cell."""
        return Work(path, Npz(), cell.seeds, cell.meta["options"]["batch_size"], cell.meta)

    def delete(self, path: Path) -> None:
        """Deletes images that `evaluate` sampled, and no others."""
        with disk_errors(self.out):
            if MADE_HERE in read_meta(path):
                path.unlink()


class Measured(NamedTuple):
    """Scores by metric, number of images, warnings, and image shape (C, H, W)."""

    scores: dict[str, float]
    images: int
    notes: tuple[str, ...]
    image_shape: tuple[int, ...] | None = None


def record(sampler: str, measured: Measured, protocol: Protocol, **of_cell: Any) -> Record:
    """Record to store, as plain data; `of_cell` is empty for images that were not sampled here."""
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
