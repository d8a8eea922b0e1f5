"""An entry: one signed statement of one owner (docs/ledger.md, "Entry").

The owner is a node (its key is the one its id was made from) or the network itself, whose key is
the root key. The signature covers the network, so that an entry of one network is none in another.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from appliance.ledger.errors import EntryError
from appliance.ledger.hlc import MS_MAX, STAMP_MAX
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import ID_SIZE, SIGNATURE_SIZE, Context, verify

ENTRY_VERSION = 1
VALUE_MAX = 4096
KEY_MAX = 128
SEQUENCE_MAX = 2**48
# Version, body and signature around the largest value, and what the other fields can take.
ENTRY_MAX = VALUE_MAX + 384
# Buckets that say whose entries count at all: reconciled before the others.
FOUNDATIONS = frozenset({"member", "revoked", "floor"})
_SIGNED_LABEL = b"skerry ledger entry v1\0"
_ID_LABEL = b"skerry ledger id v1\0"
_KEY = re.compile(r"[A-Za-z0-9._:/@-]{1,128}", re.ASCII)
_BUCKET = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)

Signer = Callable[[bytes], bytes]


class EntryRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry as it travels and is stored; the body's form depends on the version."""

    version: int
    body: bytes
    signature: bytes


class BodyV1(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the owner signs. ``expires`` is Unix milliseconds; a deleted entry has no value."""

    owner: bytes
    sequence: int
    stamp: int
    bucket: str
    key: str
    value: bytes
    expires: int | None
    deleted: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A well-formed entry; its signature is not judged until :meth:`signed_by`.

    ``sequence`` counts the owner's writes and orders them, whatever the owner's clock did between
    two of them; ``stamp`` orders entries of different owners. ``record`` is the wire form.
    ``entry_id`` is what replicas compare: 16 bytes, the first nibble 0 for FOUNDATIONS only, that
    do not depend on the signature, since an owner can sign one body in many ways (Ed25519 nonces
    are its own choice), and all are one.
    """

    owner: bytes
    sequence: int
    stamp: int
    bucket: str
    key: str
    value: bytes
    expires: int | None
    deleted: bool
    entry_id: bytes
    record: bytes = field(repr=False, compare=False)

    @property
    def slot(self) -> tuple[str, str, bytes]:
        """What it replaces: the same owner's entry of the same bucket and key."""
        return self.bucket, self.key, self.owner

    @property
    def order(self) -> tuple[int, int, bytes]:
        """Its rank within its slot; the highest is the one that counts."""
        return self.sequence, self.stamp, self.entry_id

    @property
    def size(self) -> int:
        """Its bytes on the wire and on disk."""
        return len(self.record)

    def live(self, now_ms: int) -> bool:
        """Say whether its lease, if it has one, still runs."""
        return self.expires is None or now_ms < self.expires

    def signed_by(self, key: bytes, network_id: bytes) -> bool:
        """Say whether the owner's ``key`` signed this entry for this network."""
        record = codec.decode(self.record, EntryRecord, limit=ENTRY_MAX)
        context = Context.LEDGER_ROOT if self.owner == network_id else Context.MESSAGE
        data = signed_bytes(network_id, record.version, record.body)
        return verify(context, key, data, record.signature)


def signed_bytes(network_id: bytes, version: int, body: bytes) -> bytes:
    """Return what a signature covers, within the context of node messages or of the root."""
    return _SIGNED_LABEL + network_id + bytes([version]) + body


def make_entry(
    sign: Signer,
    network_id: bytes,
    *,
    owner: bytes,
    sequence: int,
    stamp: int,
    bucket: str,
    key: str,
    value: bytes = b"",
    expires: int | None = None,
    deleted: bool = False,
) -> Entry:
    """Return a signed entry. Raises EntryError for what no entry can say.

    ``sign`` is `Identity.sign` for a node; for the network it signs under Context.LEDGER_ROOT.
    """
    body = codec.encode(BodyV1(owner, sequence, stamp, bucket, key, value, expires, deleted))
    signature = sign(signed_bytes(network_id, ENTRY_VERSION, body))
    return read_entry(codec.encode(EntryRecord(ENTRY_VERSION, body, signature)))


def read_entry(data: bytes) -> Entry:
    """Return the entry that a record holds. Raises EntryError.

    Reads this release's version and those before it that are in the table; nothing is parsed beyond
    ENTRY_MAX bytes.
    """
    # Fixed for all versions: an array (fixarray) whose first element is the version (fixint).
    if len(data) > 2 and data[0] & 0xF0 == 0x90 and max(_READERS) < data[1] < 0x80:
        raise EntryError(f"an entry of version {data[1]}", newer=True)
    try:
        record = codec.decode(data, EntryRecord, limit=ENTRY_MAX)
        reader = _READERS.get(record.version)
        if reader is None:
            raise EntryError(f"an entry of version {record.version}")
        if len(record.signature) != SIGNATURE_SIZE:
            raise EntryError("an entry's signature has a wrong size")
        return reader(data, record)
    except FormatError as error:
        raise EntryError(f"malformed entry: {error}") from error


def _read_v1(data: bytes, record: EntryRecord) -> Entry:
    body = codec.decode(record.body, BodyV1, limit=ENTRY_MAX)
    right = (
        len(body.owner) == ID_SIZE
        and 1 <= body.sequence <= SEQUENCE_MAX
        and 0 <= body.stamp <= STAMP_MAX
        and _BUCKET.fullmatch(body.bucket) is not None
        and _KEY.fullmatch(body.key) is not None
        and len(body.value) <= (0 if body.deleted else VALUE_MAX)
        and (body.expires is None or 0 < body.expires <= MS_MAX)
    )
    if not right:
        raise EntryError("a field of an entry is out of range")
    return Entry(
        body.owner,
        body.sequence,
        body.stamp,
        body.bucket,
        body.key,
        body.value,
        body.expires,
        body.deleted,
        _entry_id(record, body.bucket),
        data,
    )


def _entry_id(record: EntryRecord, bucket: str) -> bytes:
    digest = hashlib.sha256(_ID_LABEL + bytes([record.version]) + record.body).digest()
    # The first nibble is 0 for what others are judged by, so that it forms a range of its own.
    first = digest[0] & 15
    if bucket not in FOUNDATIONS:
        first |= (digest[0] >> 4) % 15 + 1 << 4
    return bytes([first]) + digest[1:ID_SIZE]


_READERS: dict[int, Callable[[bytes, EntryRecord], Entry]] = {1: _read_v1}
