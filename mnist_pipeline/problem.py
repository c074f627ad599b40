"""The one error of commands that run something."""


class Problem(Exception):
    """The command cannot do what was asked; the message says why and what to do."""
