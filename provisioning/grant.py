"""A grant: the root key's signed permission to join (token-format.md, "Grant")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import KEY_SIZE, SIGNATURE_SIZE, Context, short_hash, sign, verify
from provisioning.names import are_labels

GRANT_LIMIT = 2500
TIME_MAX = 2**40
COUNT_MAX = 1_000_000
ROLE_BITS = MappingProxyType({"auto": 1, "server": 2, "agent": 4, "none": 8})
FOUNDER_BIT = 16
_ALL_BITS = sum(ROLE_BITS.values()) + FOUNDER_BIT
_ID_LABEL = b"skerry grant id v1"


class GrantBody(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The signed bytes of a grant. ``issued`` and ``expires`` are Unix seconds."""

    key: bytes
    roles: int
    labels: tuple[tuple[str, str], ...]
    issued: int
    expires: int | None
    count: int | None


class GrantRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A grant's body and the root key's signature of it."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Grant:
    """Who may join: nodes that hold the private half of ``key``, in ``roles``, until ``expires``.

    ``record`` is the signed form. Nothing is said here about whose signature it is: ask
    :meth:`signed_by`.
    """

    grant_id: bytes
    key: bytes
    roles: frozenset[str]
    founder: bool
    labels: Mapping[str, str] = field(hash=False)
    issued: int
    expires: int | None
    count: int | None
    record: bytes

    def signed_by(self, root_key: bytes) -> bool:
        """Say whether the root key signed this grant."""
        record = codec.decode(self.record, GrantRecord, limit=GRANT_LIMIT)
        return verify(Context.GRANT, root_key, record.body, record.signature)

    def expired(self, now: float) -> bool:
        """Say whether it lets nobody new in any more at ``now`` (Unix seconds)."""
        return self.expires is not None and now >= self.expires


def issue(
    root_seed: bytes,
    grant_key: bytes,
    *,
    roles: frozenset[str],
    labels: Mapping[str, str],
    issued: int,
    expires: int | None = None,
    count: int | None = None,
    founder: bool = False,
) -> Grant:
    """Return a grant signed by the root key. Raises FormatError for what no grant can say."""
    if unknown := roles - ROLE_BITS.keys():
        raise FormatError(f"there is no role {min(unknown)!r}")
    bits = sum(ROLE_BITS[role] for role in roles) + (FOUNDER_BIT if founder else 0)
    body = codec.encode(
        GrantBody(grant_key, bits, tuple(sorted(labels.items())), issued, expires, count)
    )
    signature = sign(Context.GRANT, root_seed, body)
    return read_grant(codec.encode(GrantRecord(body, signature)))


def read_grant(data: bytes) -> Grant:
    """Return the grant that a record holds; its signature is not judged. Raises FormatError."""
    record = codec.decode(data, GrantRecord, limit=GRANT_LIMIT)
    body = codec.decode(record.body, GrantBody, limit=GRANT_LIMIT)
    labels = dict(body.labels)
    right = (
        len(record.signature) == SIGNATURE_SIZE
        and len(body.key) == KEY_SIZE
        and 0 < body.roles <= _ALL_BITS
        and body.roles != FOUNDER_BIT
        and are_labels(labels)
        and body.labels == tuple(sorted(labels.items()))
        and 0 <= body.issued <= TIME_MAX
        and (body.expires is None or body.issued < body.expires <= TIME_MAX)
        and (body.count is None or 1 <= body.count <= COUNT_MAX)
    )
    if not right:
        raise FormatError("a field of the grant is out of range")
    return Grant(
        grant_id=short_hash(_ID_LABEL, record.body),
        key=body.key,
        roles=frozenset(role for role, bit in ROLE_BITS.items() if body.roles & bit),
        founder=bool(body.roles & FOUNDER_BIT),
        labels=MappingProxyType(labels),
        issued=body.issued,
        expires=body.expires,
        count=body.count,
        record=data,
    )
