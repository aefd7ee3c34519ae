"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """The name to write to: a file beside `path` that is renamed to it when it is on the disk, or deleted.

    Raises:
        OSError: it cannot be written, in whatever way torch or safetensors say so.
    """
    temporary = Path(f"{path}.tmp")  # always this one, so that kills leave no more than one behind
    try:
        yield temporary
        with temporary.open("rb") as file:
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
