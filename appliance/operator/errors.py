"""The operator's branch of the error tree."""

from __future__ import annotations

from skerry.errors import SkerryError


class OperatorError(SkerryError):
    """What the operator asked for cannot be said, or not now."""


class ClockError(OperatorError):
    """This machine's clock and the network's are too far apart to sign anything."""


class PublishError(OperatorError):
    """A node cannot be reached, or does not understand."""
