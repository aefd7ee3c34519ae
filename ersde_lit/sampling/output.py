"""Where samples go: `--out`, and beside it, while a run is under way, the folder of its parts; and views of them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def check_out(out: str | Path, option: str = "out") -> None:
    """Says at once whether anything could be written to `out`, which `option` gave. Changes nothing.

    Raises:
        ValueError: a missing or unwritable parent folder, or an impossible name.
    """
    with disk_errors(out, option):
        Path(out).exists()
        target = Path(out).resolve()
        if not str(out).strip() or not target.name:
            raise ValueError(f"--{option} {str(out)!r} is no name of a file or folder")
        parent = target.parent
        if not parent.is_dir():
            raise ValueError(f"--{option} {out}: there is no folder {parent}; make it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ValueError(f"--{option} {out}: the folder {parent} is not writable")


def check_apart(outputs: Mapping[str, str], inputs: Mapping[str, str]) -> None:
    """Raises ValueError where one of the files written, by option, is another one, or one that is read."""
    options: dict[Path, str] = {Path(path).resolve(): option for option, path in inputs.items()}
    for option, path in outputs.items():
        if (other := options.setdefault(Path(path).resolve(), option)) != option:
            raise ValueError(f"--{option} {path} is also --{other}: give it another name")


@contextmanager
def disk_errors(out: str | Path, option: str = "out") -> Iterator[None]:
    """Turns a full disk and the like (OSError) into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--{option} {out} cannot be written: {error.strerror or error}") from error
