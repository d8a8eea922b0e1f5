"""The root of the error tree."""

from __future__ import annotations


class SkerryError(Exception):
    """Something that a person can act on.

    ``str(error)`` names what is wrong, the value and the place; ``hint`` is the way out. The
    command line prints both and exits with ``exit_status``: no traceback.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SkerryError):
    """The words of the call are off."""

    exit_status = 2
