"""The error that the command line shows to its user in one line."""


class UserError(ValueError):
    """A request that cannot be carried out: bad options, files or combinations. Its message says what to do."""
