"""Errors that the command line shows to its user in one line."""


class UserError(ValueError):
    """A request that cannot be carried out: bad options, files or combinations. Its message says what to do."""


def missing(what: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f'{what}: pip install "ersde-lit[{extra}]"')
