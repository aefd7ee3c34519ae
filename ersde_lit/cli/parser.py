"""The parser of every command that is not Lightning's."""

from typing import NoReturn

from jsonargparse import ArgumentParser

from ersde_lit.cli import fail


class Parser(ArgumentParser):
    """Says in one line, which begins with the command, what is wrong."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        command = self.prog.rpartition(" ")[2]
        raise SystemExit(fail(f"{command}: {message}"))
