"""Errors that the command line shows to its user in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """A request that cannot be carried out: bad options, files or combinations. Its message says what to do."""


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turns a failed import of an optional package into a UserError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(f'{what} needs {error.name}: pip install "ersde-lit[{extra}]"') from error


def in_short(value: Any, most: int = 60) -> str:
    """A value in a message, cut where it is long."""
    text = str(value) if value or value == 0 else "none"
    return text if len(text) <= most else f"{text[: most - 3]}..."
