"""Where samples go: `--out`, and beside it, while a run is under way, the folder of its parts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_out(out: str | Path) -> None:
    """Says at once whether anything could be written to `out`. Changes nothing.

    Raises:
        ValueError: a missing or unwritable parent folder, or an impossible name.
    """
    with disk_errors(out):
        Path(out).exists()
        parent = Path(out).resolve().parent
        if not parent.is_dir():
            raise ValueError(f"--out {out}: there is no folder {parent}; make it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ValueError(f"--out {out}: the folder {parent} is not writable")


@contextmanager
def disk_errors(out: str | Path) -> Iterator[None]:
    """Turns a full disk and the like (OSError) into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror or error}") from error
