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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ersde_lit.errors import UserError
from ersde_lit.files import check_out, disk_errors, replacing
from ersde_lit.sampling.description import Meta, differences, parse_meta
from ersde_lit.sampling.formats import About, Encoded, Format, read_meta
from ersde_lit.untrusted.archives import open_stored


class Work:
    """The files of one run.

    Args:
        out: where the images go in the end.
        format: how they are kept there.
        seeds: of the images, in order; block k is the k-th `batch_size` of them.
        meta: plain data that describes the images. Its "seeds", "options" and "checkpoints" say what they are: these
            must be the same for a run to be gone on with.
        overwrite: replace what `out` holds, and drop what is under way there, if either is of another run.
    """

    def __init__(
        self,
        out: str | Path,
        format: Format,
        seeds: Sequence[int],
        batch_size: int,
        meta: Meta,
        overwrite: bool = False,
    ) -> None:
        self.out, self.format, self.seeds, self.batch_size = out, format, seeds, batch_size
        self.meta, self.overwrite = meta, overwrite
        self.target = Path(out).resolve()
        self.folder = self.target.with_name(f".{self.target.name}.parts")
        self.lock = FileLock(self.folder / "lock", blocking=False)
        self.count = -(-len(seeds) // batch_size)

    # --- before anything is written, on every rank

    def finished(self) -> bool:
        """Whether `out` holds these very images. Changes nothing.

        Raises:
            ValueError: `out` cannot be written, or it or the parts beside it are of something else; says of what.
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
        """Takes the place, clears away what a killed run left, and returns the numbers of the blocks to be made.

        Raises:
            ValueError: another process is at work there, or the disk fails.
        """
        with disk_errors(self.out):
            self.folder.mkdir(exist_ok=True)
            self._take()
            kept = self._kept()
            if kept is None or differences(kept, self.meta):
                self._clear(lambda path: path.name != "lock")
                self._put("meta.json", json.dumps(self.meta).encode())
            else:
                self._clear(lambda path: path.name.endswith(".tmp") or path.stem == "whole")
        return sorted({*range(self.count)} - self.done())

    def _take(self) -> None:
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(f"--out {self.out}: another process is working on it; wait for it to end") from None
        except NotImplementedError:
            pass  # a file system without locks

    def _clear(self, unwanted: Any) -> None:
        for path in [*self.folder.iterdir()]:
            if unwanted(path):
                _remove(path)

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
                    _flush(complete)
                if self.target.exists():
                    self._may_replace()
                _replace(complete, self.target, aside=self.folder / "replaced")
            except BaseException:
                with suppress(OSError):
                    _remove(complete)
                raise
            self.clean()

    def clean(self) -> None:
        """Removes the parts, if no other process is at work there."""
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
        """The numbers of the blocks that are there, whichever rank made them."""
        with disk_errors(self.out):
            return {int(name[:-4]) for name in os.listdir(self.folder) if name.endswith(".zip") and name[:-4].isdigit()}

    def images_done(self) -> int:
        """The number of images in them."""
        done = self.done()
        last = self.count - 1
        return (len(done) - (last in done)) * self.batch_size + (last in done) * len(self.block(last))

    def save(self, number: int, images: Encoded) -> None:
        """Keeps a block; raises ValueError, and leaves nothing, where the disk fails."""
        with disk_errors(self.out):
            self._put(f"{number:06d}.zip", images)

    @property
    def chunk(self) -> int:
        """How many images fit into memory at a time: `batch_size`, or less once some rank has found it too large."""
        try:
            return min(self.batch_size, int((self.folder / "chunk").read_text()))
        except (FileNotFoundError, ValueError):
            return self.batch_size

    def shrink(self, chunk: int) -> bool:
        """Keeps that no more than `chunk` images fit; False if that, or less, was known."""
        if self.chunk <= chunk:
            return False
        with disk_errors(self.out):
            self._put("chunk", str(chunk).encode())
        return True

    def _put(self, name: str, content: bytes | Encoded) -> None:
        with replacing(self.folder / name, concurrent=True) as temporary:
            if isinstance(content, Mapping):
                with zipfile.ZipFile(temporary, "w") as file:
                    for key, data in content.items():
                        file.writestr(key, data)
            else:
                temporary.write_bytes(content)

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


def _flush(path: Path) -> None:
    """Waits for the disk, so that a power cut leaves no renamed file without its content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


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
