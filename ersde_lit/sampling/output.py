"""Output that is whole or absent: made under a temporary name beside its place and renamed into it at the end."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENDINGS = ("", ".npz", ".zip")  # a folder of PNGs, ADM's batch format, EDM's data-set format


def check_out(out: str | Path, overwrite: bool = False) -> None:
    """Says at once whether samples can go to `out`: a folder (no ending), `.npz` or `.zip`. Changes nothing.

    Raises:
        ValueError: unknown ending, a missing or unwritable parent folder, or `out` exists and may not be replaced
            (with `overwrite`: it is not what samples look like under such a name).
    """
    with disk_errors(out):
        path, parent = Path(out), Path(out).resolve().parent
        if path.suffix.lower() not in ENDINGS:
            raise ValueError(f"--out {out}: unknown ending {path.suffix}; use a folder (no ending), .npz or .zip")
        if path.exists():
            if not overwrite:
                raise ValueError(f"--out {out} exists; choose another name, or add --overwrite to replace it")
            if not (path.is_file() if path.suffix else _holds_samples(path)):
                raise ValueError(f"--out {out} exists and is not a set of samples, so it stays; choose another name")
        if not parent.is_dir():
            raise ValueError(f"--out {out}: there is no folder {parent}; make it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ValueError(f"--out {out}: the folder {parent} is not writable")


@contextmanager
def written_whole(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Gives a free name beside `out` to write a file or folder to; renames it to `out` in the end, removes it on error.

    Raises:
        ValueError: as `check_out`, before and again after the work.
    """
    check_out(out, overwrite)
    target = Path(out).resolve()
    tmp = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield tmp
        check_out(out, overwrite)  # it may have appeared meanwhile
        with disk_errors(out):
            _replace(tmp, target)
    finally:
        with suppress(OSError):
            _remove(tmp)


@contextmanager
def disk_errors(out: str | Path) -> Iterator[None]:
    """Turns a full disk and the like (OSError) into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror or error}") from error


def _holds_samples(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "meta.json" in names and all(name.endswith((".png", ".json")) for name in names)


def _replace(tmp: Path, target: Path) -> None:
    if not target.is_dir():
        tmp.replace(target)
        return
    old = tmp.with_suffix(".old.tmp")  # rename() does not replace a folder that holds something
    target.rename(old)
    try:
        tmp.rename(target)
    except OSError:
        old.rename(target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
