"""Image files in a folder or zip, and the list of other files there."""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from ersde_lit.data.decode import Exif, decode, decoder_errors, image_endings
from ersde_lit.errors import UserError
from ersde_lit.untrusted.archives import open_zip

LABELS = "dataset.json"
KNOWN = {LABELS, "meta.json", "thumbs.db", "desktop.ini", ".ds_store", "__macosx"}  # never pictures, and often there
NAMED = 3  # of the files that are left out


class Files(ABC):
    """Named files in a folder or a zip.

    Attributes:
        marks: of each file by its name, which is relative and has forward slashes: something that tells its content
            from another's (length or checksum). Hidden files are left out.
        images: the names of those that have an ending of an image that can be read, in order.
        left_out: what else is there, but for files that never are images.
    """

    path: Path
    marks: dict[str, int]

    def __init__(self, path: Path) -> None:
        self.path = path
        found = dict(self._entries())
        self.marks = {
            name: mark for name, mark in found.items() if mark is not None and all(map(is_visible, name.split("/")))
        }
        self.images = sorted(name for name in self.marks if PurePosixPath(name).suffix.lower() in image_endings())
        self.left_out = sorted(name for name in {*found} - {*self.images} if not _is_known(name))
        if not self.images:
            raise UserError(f"{path} holds no image{': ' * bool(self.left_out)}{''.join(self.notes)}")

    @property
    def notes(self) -> tuple[str, ...]:
        """A line about what is left out, if anything is."""
        if not self.left_out:
            return ()
        count, names = len(self.left_out), ", ".join(self.left_out[:NAMED] + ["..."] * (len(self.left_out) > NAMED))
        return (f"{count} file{'s' * (count > 1)} left out, hidden or of no known kind of image: {names}",)

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    def decode(self, name: str, channels: Literal[1, 3] | None, exif: Exif) -> Image.Image:
        """Decoded image (`decode`); raises UserError, which names the file."""
        with decoder_errors(f"{self.where(name)} cannot be used"):
            return decode(self.read(name), channels, exif)

    def where(self, name: str) -> str:
        """Place of a file, for messages."""
        return str(self.path / name)

    @abstractmethod
    def _entries(self) -> Iterator[tuple[str, int | None]]:
        """All names with their marks; None: a folder that is not entered, or what is no file."""


class Folder(Files):
    """Files below a folder; a folder that links lead to several times is entered once."""

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def _entries(self) -> Iterator[tuple[str, int | None]]:
        root = self.path.resolve()
        entered = {root, *root.parents}  # a link to a folder above would lead here again
        for folder, below, names in os.walk(self.path, onerror=_refuse, followlinks=True):
            inside = "" if folder == str(self.path) else f"{Path(folder).relative_to(self.path).as_posix()}/"
            for name in names:
                yield f"{inside}{name}", _size(f"{folder}/{name}")
            found, below[:] = sorted(below, key=lambda name: (os.path.islink(f"{folder}/{name}"), name)), []
            for name in found:
                place = Path(folder, name).resolve()
                if not is_visible(name) or place in entered:
                    yield f"{inside}{name}", None
                else:
                    entered.add(place)
                    below.append(name)


class Zip(Files):
    """Files in a zip archive."""

    def __init__(self, path: Path) -> None:
        self.zip = open_zip(path)
        super().__init__(path)

    def read(self, name: str) -> bytes:
        return self.zip.read(name)

    def where(self, name: str) -> str:
        return f"{name} in {self.path}"

    def _entries(self) -> Iterator[tuple[str, int | None]]:
        return ((entry.filename, entry.CRC) for entry in self.zip.infolist() if not entry.is_dir())


def open_files(path: Path) -> Files | None:
    """The files in a folder or zip; None where the path is of neither kind. Raises UserError if it is absent."""
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.is_dir():
        return Folder(path)
    return Zip(path) if path.suffix.lower() == ".zip" else None


def _size(path: str) -> int | None:
    """Size of a file; None for a pipe, socket or device, which may never end."""
    try:
        found = os.stat(path)
    except OSError:
        return os.lstat(path).st_size  # a link to nothing: whoever reads it will say so
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def is_visible(name: str) -> bool:
    """Whether a file or folder is not hidden."""
    return not name.startswith(".") and name != "__MACOSX"


def notes_on(exif: Exif) -> tuple[str, ...]:
    """Note where the EXIF orientation is ignored."""
    return () if exif == "apply" else ("EXIF orientation is ignored, as EDM's data tool and torchvision do",)


def _is_known(name: str) -> bool:
    """Whether a file is metadata that is left out without a note."""
    parts = name.lower().split("/")
    return parts[-1] in KNOWN or any(part == "__macosx" or part.startswith("._") for part in parts)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")
