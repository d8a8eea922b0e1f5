"""The errors of building."""

from __future__ import annotations

from skerry.errors import SkerryError


class BuildError(SkerryError):
    """A build step failed, or its input is wrong."""


class ToolsError(BuildError):
    """The tools root could not be made or entered."""


class BoardError(BuildError):
    """A board folder is wrong."""


class LockError(BuildError):
    """The package lock is wrong, or the archive no longer has what it names."""
