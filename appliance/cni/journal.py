"""What was begun for each attachment, written down before it is done.

One record per attachment. It is worth something during one boot only (a reboot takes namespaces,
links and rules), so it belongs on a tmpfs: no write wears the SD card, and kill -9 loses nothing.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from appliance.cni.spec import Attachment
from appliance.cni.steps import Step, Undo, undo_of
from provisioning import codec
from provisioning.errors import FormatError
from skerry.errors import SkerryError

FORMAT = 1
RECORD_MAX = 1 << 16


class JournalError(SkerryError):
    """A record that cannot be read."""


class Phase(Enum):
    """How far an attachment is."""

    ADDING = "adding"
    ADDED = "added"
    REMOVING = "removing"


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One attachment: its steps, and how many of them were begun (the last perhaps not done)."""

    attachment: Attachment
    netns: str
    phase: Phase
    steps: tuple[Step, ...]
    begun: int
    # Of an attachment that was removed without a record of how it was made.
    undo: tuple[Undo, ...] = ()

    def undos(self) -> tuple[Undo, ...]:
        """Return what takes it back."""
        return self.undo or undo_of(self.steps[: self.begun])


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    boot_id: str
    entry: Entry


def dump(entry: Entry, boot_id: str) -> bytes:
    """Return the record of an entry."""
    return codec.encode(_Record(FORMAT, boot_id, entry))


def load(data: bytes, boot_id: str) -> Entry | None:
    """Return the entry in a record, None for one of an earlier boot. Raises JournalError."""
    try:
        record = codec.decode(data, _Record, limit=RECORD_MAX)
    except FormatError as error:
        raise JournalError(f"a record of pod networking is damaged: {error}") from error
    if record.format != FORMAT:
        raise JournalError(
            f"a record of pod networking has format {record.format}, this release reads {FORMAT}"
        )
    entry = record.entry
    if not 0 <= entry.begun <= len(entry.steps):
        raise JournalError(f"a record has {entry.begun} begun of {len(entry.steps)} steps")
    return entry if record.boot_id == boot_id else None
