"""Reader of untrusted zip archives: each entry's path and unpacked size is checked before any of it is read."""

import re
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

from ersde_lit.errors import UserError

MIB = 2**20


def open_zip(path: str | Path, largest: int = 64 * MIB) -> zipfile.ZipFile:
    """A zip file whose entries are safe to read, as reading takes no more memory than the directory claims.

    Args:
        path: the file.
        largest: bytes that one entry may unpack to.

    Raises:
        UserError: no zip file, or an entry that leads out of the archive, is twice in it, encrypted or too large.
        OSError: the file cannot be opened.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError):
        raise UserError(f"{path} is damaged, cut short or no zip file") from None
    try:
        _check(archive, path, largest)
    except ValueError:
        archive.close()
        raise
    return archive


def open_stored(path: str | Path) -> zipfile.ZipFile:
    """As `open_zip`, for entries that are not compressed, so none is larger than the file."""
    return open_zip(path, Path(path).stat().st_size)


def _check(archive: zipfile.ZipFile, path: str | Path, largest: int) -> None:
    for entry in archive.infolist():
        parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
        if not parts or ".." in parts or parts[0] == "/" or re.match("[A-Za-z]:", parts[0]):
            raise UserError(f"{path} refused: the path of its entry {entry.filename[:80]!r} leads out of the archive")
        if entry.flag_bits & 0x1:
            raise UserError(f"{path}: its entry {entry.filename[:80]!r} is encrypted: unpack it first")
        if entry.file_size > largest:
            raise UserError(
                f"{path} refused: its entry {entry.filename[:80]!r} unpacks from {entry.compress_size:,} to "
                f"{entry.file_size:,} bytes, and at most {largest:,} are read"
            )
    name, count = max(Counter(archive.namelist()).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise UserError(f"{path}: its entry {name[:80]!r} is there twice")
