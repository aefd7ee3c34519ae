"""Files: replaced atomically, locked, and checked before work begins; disk errors in one line."""

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ersde_lit.errors import UserError


@contextmanager
def replacing(path: str | Path, concurrent: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` once it is on the disk, deleted on an error.

    Args:
        path: the file that is replaced.
        concurrent: several processes may write it at once, and the last one wins. Otherwise the temporary name is
            always the same, so that kills leave no more than one file behind.

    Raises:
        OSError: it cannot be written, in whatever way torch or safetensors say so.
    """
    temporary = Path(f"{path}.{os.getpid()}.tmp" if concurrent else f"{path}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a machine that goes down must not keep the name without the content
        temporary.replace(path)
    except (SafetensorError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if "No space left" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if isinstance(error, SafetensorError) or "inline_container" in said or "PytorchStreamWriter" in said:
            raise OSError(f"is the disk full? ({said[:120]})") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, concurrent: bool = False) -> None:
    """Replaces the text of a file as a whole, as `replacing` does."""
    with replacing(path, concurrent) as temporary:
        temporary.write_text(text, encoding="utf-8")


def take(lock: FileLock, busy: str) -> None:
    """Acquires a lock that does not block; UserError with the message `busy` where another process holds it."""
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire()
    except Timeout:
        raise UserError(busy) from None


@contextmanager
def locked(path: str | Path, busy: str) -> Iterator[None]:
    """Holds an exclusive lock, which the system releases when the process ends; removes its file in the end.

    Args:
        path: the lock file, in a folder that exists.
        busy: the message where another process holds it.

    Raises:
        UserError: another process holds it.
    """
    lock = FileLock(path, blocking=False)
    take(lock, busy)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps the file
            Path(path).unlink()
        lock.release()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(out: str | Path, option: str | None = "out", advice: str = "") -> Iterator[None]:
    """Turns a full disk and the like (OSError) into a UserError that names the option, or the file alone if None."""
    try:
        yield
    except OSError as error:
        name = f"--{option} {out}" if option else f"{out}"
        raise UserError(f"{name} cannot be written: {error.strerror or error}{advice}") from error


def check_out(out: str | Path, option: str = "out") -> None:
    """Checks, changing nothing, that a file or folder can be written at `out`, the value of `option`.

    Raises:
        UserError: a missing or unwritable parent folder, or an impossible name.
    """
    with disk_errors(out, option):
        Path(out).exists()
        target = Path(out).resolve()
        if not str(out).strip() or not target.name:
            raise UserError(f"--{option} {str(out)!r} is no name of a file or folder")
        parent = target.parent
        if not parent.is_dir():
            raise UserError(f"--{option} {out}: there is no folder {parent}; make it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"--{option} {out}: the folder {parent} is not writable")


def check_new(out: str | Path, option: str = "out") -> None:
    """As `check_out`; raises UserError where there is something at `out`, too."""
    check_out(out, option)
    if Path(out).exists():
        raise UserError(f"--{option} {out} exists; choose another name")


def given(**paths: str | None) -> dict[str, str]:
    """The paths that are not None, by option."""
    return {option: path for option, path in paths.items() if path is not None}


def check_present(inputs: Mapping[str, str]) -> None:
    """Raises UserError that names all files and folders to be read, by option, that do not exist."""
    if absent := [f"--{option} {path}" for option, path in inputs.items() if not Path(path).expanduser().exists()]:
        raise UserError(f"there is nothing at {', '.join(absent)}")


def check_apart(outputs: Mapping[str, str], inputs: Mapping[str, str]) -> None:
    """Raises UserError where a file to be written, by option, is also another one or one that is read."""
    options: dict[Path, str] = {Path(path).resolve(): option for option, path in inputs.items()}
    for option, path in outputs.items():
        if (other := options.setdefault(Path(path).resolve(), option)) != option:
            raise UserError(f"--{option} {path} is also --{other}: give it another name")
