"""What the root key has said and no node has confirmed yet: ``outbox.json`` beside the root key.

Order of a command, each step on the disk before the next (`work`): entries and epoch secrets
go into the outbox; they are sent; what a node took is marked as sent; once an announcement is
out, ``network.json`` gets its epoch. A crash anywhere leaves either nothing or entries that the
next command publishes first, and tokens never carry an epoch that no node was told of.

What is sent stays here until a later look at the network shows it: the one node that took it may
have died since. ``sequence`` and ``stamp`` are the highest ever given; a copy of the directory
that lags behind learns them from the network.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from appliance.ledger.entry import SEQUENCE_MAX, Entry, read_entry
from appliance.ledger.errors import EntryError
from appliance.ledger.hlc import STAMP_MAX
from provisioning.keys import SEED_SIZE, id_text
from provisioning.network import EPOCH_MAX, NetworkInfo
from provisioning.operator_files import (
    FILE_FORMAT,
    NetworkFilesError,
    read_document,
    write_document,
)

OUTBOX_FILE = "outbox.json"
# Boxes of several epochs for 10,000 members.
_FILE_LIMIT = 64 * 1024 * 1024


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    network_id: str
    sequence: int
    stamp: int
    secrets: dict[int, str]
    pending: tuple[str, ...]
    sent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outbox:
    """``pending``: in order, confirmed by nobody. ``sent``: taken by a node, not seen again yet."""

    sequence: int = 0
    stamp: int = 0
    pending: tuple[Entry, ...] = ()
    sent: tuple[Entry, ...] = ()
    secrets: Mapping[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def unseen(self) -> tuple[Entry, ...]:
        """All that the next look at the network has to show, in the order it was made."""
        return tuple(sorted((*self.sent, *self.pending), key=lambda one: one.sequence))

    def taken(self, ids: Collection[bytes]) -> Outbox:
        """Return the outbox after a node took the entries of these ids."""
        gone = tuple(one for one in self.pending if one.entry_id in ids)
        left = tuple(one for one in self.pending if one.entry_id not in ids)
        return replace(self, pending=left, sent=(*self.sent, *gone))


def load_outbox(directory: Path, network: NetworkInfo) -> Outbox:
    """Return the network's outbox, empty if there is none. Raises NetworkFilesError."""
    path = directory / OUTBOX_FILE
    hint = (
        f"restore it from a backup; or remove {path}: what no node has yet of what you said "
        "(a revocation, say) has to be said again then"
    )
    content = read_document(path, _File, limit=_FILE_LIMIT, hint=hint)
    if content is None:
        return Outbox()
    if content.network_id != id_text(network.network_id):
        raise NetworkFilesError(f"{path} is of another network", hint=hint)
    try:
        return _outbox(content, network)
    except (EntryError, ValueError) as error:
        raise NetworkFilesError(f"{path} is damaged", hint=hint) from error


def save_outbox(directory: Path, network: NetworkInfo, outbox: Outbox) -> None:
    """Keep the outbox, durably and whole. Raises NetworkFilesError."""
    content = _File(
        FILE_FORMAT,
        id_text(network.network_id),
        outbox.sequence,
        outbox.stamp,
        {number: _pack(one) for number, one in outbox.secrets.items()},
        tuple(_pack(one.record) for one in outbox.pending),
        tuple(_pack(one.record) for one in outbox.sent),
    )
    write_document(directory / OUTBOX_FILE, msgspec.json.encode(content) + b"\n")


def _outbox(content: _File, network: NetworkInfo) -> Outbox:
    secrets = {number: _unpack(one) for number, one in content.secrets.items()}
    right = (
        0 <= content.sequence <= SEQUENCE_MAX
        and 0 <= content.stamp <= STAMP_MAX
        and all(0 < number <= EPOCH_MAX for number in secrets)
        and all(len(one) == SEED_SIZE for one in secrets.values())
    )
    if not right:
        raise ValueError("out of range")
    return Outbox(
        content.sequence,
        content.stamp,
        _entries(content.pending, network),
        _entries(content.sent, network),
        secrets,
    )


def _entries(texts: Iterable[str], network: NetworkInfo) -> tuple[Entry, ...]:
    found = tuple(read_entry(_unpack(one)) for one in texts)
    for one in found:
        ours = one.owner == network.network_id
        if not ours or not one.signed_by(network.root_key, network.network_id):
            raise ValueError("not signed by the root key")
    return found


def _pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unpack(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
