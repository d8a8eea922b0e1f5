"""The overlay's branch of the error tree."""

from __future__ import annotations

from skerry.errors import SkerryError


class OverlayError(SkerryError):
    """The overlay cannot do what it should."""


class WireError(OverlayError):
    """Bytes from the network that are not what they should be; ``cause`` says which way."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause
