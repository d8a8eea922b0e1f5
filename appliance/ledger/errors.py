"""The ledger's branch of the error tree."""

from __future__ import annotations

from skerry.errors import SkerryError


class LedgerError(SkerryError):
    """The ledger cannot do what was asked."""


class EntryError(LedgerError):
    """Bytes that are no entry; ``newer`` if a later release made them."""

    def __init__(self, message: str, *, newer: bool = False) -> None:
        super().__init__(message)
        self.newer = newer


class MessageError(LedgerError):
    """A datagram that is no gossip message; ``newer`` if a later release made it."""

    def __init__(self, message: str, *, newer: bool = False) -> None:
        super().__init__(message)
        self.newer = newer


class WriteError(LedgerError):
    """A local write that no replica would accept."""
