"""The grants that were made on this machine: ``grants.json`` in the network's directory.

A note for people and for making a token again; it holds no token and no key. What a network knows
of its grants it knows from its members' certificates, so a lost note loses nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from provisioning.grant import COUNT_MAX, ROLE_BITS, TIME_MAX, Grant
from provisioning.keys import ID_SIZE, id_text
from provisioning.names import are_labels
from provisioning.operator_files import (
    FILE_FORMAT,
    NetworkFilesError,
    read_document,
    write_document,
)

GRANTS_FILE = "grants.json"
_FILE_LIMIT = 16 * 1024 * 1024
_ID_LETTERS = len(id_text(bytes(ID_SIZE)))


class GrantNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a grant allows. Times are Unix seconds; ``epoch`` is the one its token carries."""

    grant_id: str
    roles: tuple[str, ...]
    founder: bool
    labels: dict[str, str]
    issued: int
    expires: int | None
    count: int | None
    epoch: int
    replaces: str | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    grants: tuple[GrantNote, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What of a grant goes over to the one that takes its place."""

    roles: frozenset[str]
    founder: bool
    labels: dict[str, str]
    lasts: int | None
    count: int | None


def note_of(grant: Grant, epoch: int, *, replaces: str | None = None) -> GrantNote:
    """Return the note of a grant."""
    return GrantNote(
        id_text(grant.grant_id),
        tuple(sorted(grant.roles)),
        grant.founder,
        dict(grant.labels),
        grant.issued,
        grant.expires,
        grant.count,
        epoch,
        replaces,
    )


def terms_of(note: GrantNote) -> Terms:
    """Return the terms of a grant; ``lasts`` is in seconds from when it is made."""
    lasts = None if note.expires is None else note.expires - note.issued
    return Terms(frozenset(note.roles), note.founder, dict(note.labels), lasts, note.count)


def load_grants(directory: Path) -> tuple[GrantNote, ...]:
    """Return the grants made here, in their order; none if none was noted yet."""
    path = directory / GRANTS_FILE
    hint = f"restore it from a backup, or remove it: tokens stay valid, {path.name} is a note"
    content = read_document(path, _File, limit=_FILE_LIMIT, hint=hint)
    if content is None:
        return ()
    if not all(map(_possible, content.grants)):
        raise NetworkFilesError(f"{path} is damaged", hint=hint)
    return content.grants


def add_grant(directory: Path, note: GrantNote) -> None:
    """Note one more grant, durably."""
    save_grants(directory, [*load_grants(directory), note])


def save_grants(directory: Path, notes: Iterable[GrantNote]) -> None:
    """Write the notes."""
    content = msgspec.to_builtins(_File(FILE_FORMAT, tuple(notes)))
    data = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    write_document(directory / GRANTS_FILE, data, after="make the token again: none was made")


def _possible(note: GrantNote) -> bool:
    return (
        len(note.grant_id) == _ID_LETTERS
        and note.grant_id.isascii()
        and note.grant_id.isalnum()
        and bool(note.roles)
        and set(note.roles) <= ROLE_BITS.keys()
        and are_labels(note.labels)
        and 0 <= note.issued <= TIME_MAX
        and (note.expires is None or note.issued < note.expires <= TIME_MAX)
        and (note.count is None or 1 <= note.count <= COUNT_MAX)
    )
