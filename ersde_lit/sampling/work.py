"""A resumable run on disk: finished blocks of images, their description and lock, and their assembly.

While a run is under way, its finished blocks lie in a hidden folder next to `--out`, `.NAME.parts`, each a small zip,
with the run's description; a command with another description is refused. When all blocks are there they are put
together in that folder, the result is renamed to `--out`, and the folder is removed. So the same command resumes after
a kill at any moment, and nothing else is left behind.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ersde_lit.errors import UserError
from ersde_lit.files import check_out, disk_errors, replacing, take, write_text
from ersde_lit.sampling.description import Meta, differences, parse_meta
from ersde_lit.sampling.formats import About, Encoded, Format, read_meta
from ersde_lit.untrusted.archives import open_stored


@dataclass(eq=False)
class Work:
    """Files of one run.

    Attributes:
        out: the finished images.
        format: their file format.
        seeds: of the images, in order; block k is the k-th `batch_size` of them.
        meta: description of the images; its "seeds", "options" and "checkpoints" must match for a run to be resumed.
        overwrite: replace `out`, and drop an unfinished run there, if either is of another command.
        at_a_time: most that the network gets at a time; None: a block.
    """

    out: str | Path
    format: Format
    seeds: Sequence[int]
    batch_size: int
    meta: Meta
    overwrite: bool = False
    at_a_time: int | None = None

    def __post_init__(self) -> None:
        self.target = Path(self.out).resolve()
        self.folder = self.target.with_name(f".{self.target.name}.parts")
        self.lock = FileLock(self.folder / "lock", blocking=False)
        self.count = -(-len(self.seeds) // self.batch_size)

    # --- before anything is written, on every rank

    def finished(self) -> bool:
        """Whether `out` holds these images already. Changes nothing.

        Raises:
            UserError: `out` cannot be written, or it or its parts belong to another command; names the differences.
        """
        check_out(self.out)
        with disk_errors(self.out):
            if self.target.exists():
                with suppress(ValueError):
                    if not differences(read_meta(self.target), self.meta):
                        return True
                self._may_replace()
            kept = self._kept()
            differing = differences(kept, self.meta) if kept else ""
            if differing and self.done() and not self.overwrite:
                raise UserError(
                    f"--out {self.out}: an unfinished run of another command lies there, it differs in {differing}; "
                    "finish it, choose another name, or add --overwrite to drop it"
                )
        return False

    def _may_replace(self) -> None:
        if not self.overwrite:
            try:
                what = f"differs in {differences(read_meta(self.target), self.meta)}"
            except ValueError:
                what = "is not known to be of this command"
            raise UserError(
                f"--out {self.out} exists and {what}; choose another name, or add --overwrite to replace it"
            )
        if not self.format.holds(self.target):
            raise UserError(f"--out {self.out} exists and is not a set of samples, so it stays; choose another name")

    def _kept(self) -> Meta | None:
        """The description of the run under way; None without one."""
        try:
            return parse_meta((self.folder / "meta.json").read_text())
        except (FileNotFoundError, ValueError):
            return None

    # --- the first rank, alone

    def begin(self) -> list[int]:
        """Locks the folder, removes leftovers of a killed run and returns the numbers of the missing blocks.

        Raises:
            UserError: another process holds the lock, or the disk fails.
        """
        with disk_errors(self.out):
            self.folder.mkdir(exist_ok=True)
            self._take()
            kept = self._kept()
            resumed = kept is not None and not differences(kept, self.meta)
            for path in [*self.folder.iterdir()]:
                leftover = path.name.endswith(".tmp") or path.stem == "whole"
                if leftover or not (resumed or path.name == "lock"):
                    _remove(path)
            if not resumed:
                write_text(self.folder / "meta.json", json.dumps(self.meta), concurrent=True)
        return sorted({*range(self.count)} - self.done())

    def _take(self) -> None:
        take(self.lock, f"--out {self.out}: another process is working on it; wait for it to end")

    def publish(self, labels: Sequence[int] | None, **facts: Any) -> None:
        """Puts the blocks together under the final name and removes the parts; `facts` go into the description too.

        Raises:
            ValueError: the disk fails; what `out` should be has appeared meanwhile; a block is damaged (it is removed,
                so that the same command makes it anew). The blocks stay.
        """
        complete = self.folder / f"whole{self.target.suffix}"
        with disk_errors(self.out):
            try:
                meta = json.dumps({**self.meta, **facts}, indent=1)
                self.format.write(complete, self._blocks(), About(self.seeds, labels, meta))
                if complete.is_file():
                    with complete.open("rb") as file:
                        os.fsync(file.fileno())  # a power cut must leave no renamed file without its content
                if self.target.exists():
                    self._may_replace()
                _replace(complete, self.target, aside=self.folder / "replaced")
            except BaseException:
                with suppress(OSError):
                    _remove(complete)
                raise
            self.clean()

    def clean(self) -> None:
        """Removes the parts, unless another process holds the lock."""
        if not self.folder.exists():
            return
        with suppress(ValueError, OSError):
            self._take()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.lock.release(force=True)  # however often it was taken

    # --- every rank

    def block(self, number: int) -> Sequence[int]:
        """The seeds of a block."""
        return self.seeds[number * self.batch_size : (number + 1) * self.batch_size]

    def done(self) -> set[int]:
        """The numbers of the finished blocks, of all ranks."""
        with disk_errors(self.out):
            return {int(name[:-4]) for name in os.listdir(self.folder) if name.endswith(".zip") and name[:-4].isdigit()}

    def images_done(self) -> int:
        """The number of images in the finished blocks."""
        return sum(len(self.block(number)) for number in self.done())

    def save(self, number: int, images: Encoded) -> None:
        """Stores a block atomically; raises UserError where the disk fails."""
        replaced = replacing(self.folder / f"{number:06d}.zip", concurrent=True)
        with disk_errors(self.out), replaced as temporary, zipfile.ZipFile(temporary, "w") as file:
            for name, data in images.items():
                file.writestr(name, data)

    @property
    def chunk(self) -> int:
        """What the network gets at a time: `at_a_time`, or less once a rank ran out of memory."""
        most = self.at_a_time or self.batch_size
        try:
            return min(most, int((self.folder / "chunk").read_text()))
        except (FileNotFoundError, ValueError):
            return most

    def shrink(self, chunk: int) -> bool:
        """Lowers `chunk` for all ranks and for resumed runs; False if it is as low already."""
        if self.chunk <= chunk:
            return False
        with disk_errors(self.out):
            write_text(self.folder / "chunk", str(chunk), concurrent=True)
        return True

    def _blocks(self) -> Iterator[Encoded]:
        for number in range(self.count):
            path = self.folder / f"{number:06d}.zip"
            try:
                with open_stored(path) as file:
                    block = {name: file.read(name) for name in self.format.names(self.block(number))}
            except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
                path.unlink(missing_ok=True)
                raise UserError(f"{path} is damaged and was removed: run the same command again") from error
            yield block


def _replace(new: Path, target: Path, aside: Path) -> None:
    if not target.is_dir():
        new.replace(target)
        return
    target.rename(aside)  # rename() does not replace a folder that holds something
    try:
        new.rename(target)
    except OSError:
        aside.rename(target)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
