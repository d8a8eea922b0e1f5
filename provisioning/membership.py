"""Membership certificates: root signs grant, grant signs node, node proves its key.

A node signs itself in with the grant's private key from its token; every peer checks the whole
chain against the root key it knows, so no server is asked. Wire form: token-format.md,
"Certificate". Identify a member by ``node_id``, never by a hash of the certificate's bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from provisioning import codec
from provisioning.errors import FormatError, ProvisioningError
from provisioning.grant import TIME_MAX, Grant, read_grant
from provisioning.keys import (
    KEY_SIZE,
    SIGNATURE_SIZE,
    Context,
    id_text,
    public_key,
    short_hash,
    sign,
    verify,
)
from provisioning.names import is_name
from provisioning.network import NetworkInfo

CERTIFICATE_VERSION = 1
CERTIFICATE_LIMIT = 4096
_NODE_ID_LABEL = b"skerry node v1"


class Refusal(Enum):
    """Why a certificate lets nobody in; the value is how a log line puts it."""

    MALFORMED = "malformed certificate"
    UNKNOWN_VERSION = "certificate of an unknown version"
    OTHER_NETWORK = "certificate of another network"
    FORGED_GRANT = "forged grant: not signed by this network's root key"
    TAMPERED = "tampered certificate: not signed by its grant"
    UNPROVEN_KEY = "the node does not own the key in its certificate"
    GRANT_EXPIRED = "the grant has expired"


class CertificateError(ProvisioningError):
    """A certificate that is refused, and its ``cause``."""

    def __init__(self, cause: Refusal, detail: str = "") -> None:
        super().__init__(f"{cause.value}: {detail}" if detail else cause.value)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Member:
    """A node whose certificate was verified. Times are Unix seconds.

    ``grant_count`` is how many nodes the grant was meant for; nobody enforces it yet.
    """

    node_id: bytes
    node_key: bytes
    wg_key: bytes
    name: str
    roles: frozenset[str]
    labels: Mapping[str, str] = field(hash=False)
    grant_id: bytes
    grant_expires: int | None
    issued: int
    founder: bool = False
    grant_count: int | None = None

    @property
    def id_text(self) -> str:
        """The node id as people see it."""
        return id_text(self.node_id)

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Say whether this member's `Identity.sign` made the signature."""
        return verify(Context.MESSAGE, self.node_key, data, signature)


class CertificateBody(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the grant's key and the node's key both sign."""

    network_id: bytes
    grant_id: bytes
    node_key: bytes
    wg_key: bytes
    name: str
    issued: int


class CertificateRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A certificate as it travels."""

    version: int
    grant: bytes
    body: bytes
    grant_signature: bytes
    node_signature: bytes


def node_id(node_key: bytes) -> bytes:
    """Return the 16-byte id of the node with this Ed25519 public key."""
    return short_hash(_NODE_ID_LABEL, node_key)


def make_certificate(
    network: NetworkInfo,
    grant: Grant,
    grant_seed: bytes,
    *,
    node_seed: bytes,
    wg_key: bytes,
    name: str,
    issued: int,
) -> bytes:
    """Return a node's certificate, signed by the grant's key and by the node's own."""
    body = codec.encode(
        CertificateBody(
            network.network_id, grant.grant_id, public_key(node_seed), wg_key, name, issued
        )
    )
    return codec.encode(
        CertificateRecord(
            CERTIFICATE_VERSION,
            grant.record,
            body,
            sign(Context.CERTIFICATE, grant_seed, body),
            sign(Context.NODE_PROOF, node_seed, body),
        )
    )


def verify_certificate(
    data: bytes, *, network: NetworkInfo, now: float, admitted: Callable[[bytes], bool]
) -> Member:
    """Return the member that the certificate proves, or raise CertificateError with its cause.

    An expired grant lets nobody new in and throws nobody out: ``admitted(node_id)`` says who is
    in already. ``now`` is Unix seconds; a caller whose clock may be wrong passes at least the
    `Identity.time_floor`. There is no "not before": a clock in 1970 locks nobody out.
    """
    record, body, grant = _read(data)
    if body.network_id != network.network_id:
        raise CertificateError(Refusal.OTHER_NETWORK, f"id {id_text(body.network_id)}")
    who = f"{body.name} {id_text(node_id(body.node_key))}"
    if not grant.signed_by(network.root_key):
        raise CertificateError(Refusal.FORGED_GRANT, who)
    if body.grant_id != grant.grant_id or not verify(
        Context.CERTIFICATE, grant.key, record.body, record.grant_signature
    ):
        raise CertificateError(Refusal.TAMPERED, who)
    if not verify(Context.NODE_PROOF, body.node_key, record.body, record.node_signature):
        raise CertificateError(Refusal.UNPROVEN_KEY, who)
    member = _member(body, grant)
    if not (math.isfinite(now) and not grant.expired(now)) and not admitted(member.node_id):
        raise CertificateError(Refusal.GRANT_EXPIRED, who)
    return member


def _read(data: bytes) -> tuple[CertificateRecord, CertificateBody, Grant]:
    try:
        record = codec.decode(data, CertificateRecord, limit=CERTIFICATE_LIMIT)
    except FormatError as error:
        raise _unreadable(data, error) from error
    if record.version != CERTIFICATE_VERSION:
        raise CertificateError(Refusal.UNKNOWN_VERSION, str(record.version))
    try:
        body = codec.decode(record.body, CertificateBody, limit=CERTIFICATE_LIMIT)
        grant = read_grant(record.grant)
    except FormatError as error:
        raise CertificateError(Refusal.MALFORMED, str(error)) from error
    right = (
        len(body.network_id) == len(body.grant_id) == 16
        and len(body.node_key) == len(body.wg_key) == KEY_SIZE
        and any(body.wg_key)
        and len(record.grant_signature) == len(record.node_signature) == SIGNATURE_SIZE
        and is_name(body.name)
        and 0 <= body.issued <= TIME_MAX
    )
    if not right:
        raise CertificateError(Refusal.MALFORMED, "a field is out of range")
    return record, body, grant


def _unreadable(data: bytes, error: FormatError) -> CertificateError:
    """Tell a certificate of another version from rubbish: an array whose first element is one.

    That much is fixed for all versions (MessagePack fixarray, then a positive fixint).
    """
    newer = len(data) > 2 and data[0] & 0xF0 == 0x90 and CERTIFICATE_VERSION < data[1] < 0x80
    if newer and len(data) <= CERTIFICATE_LIMIT:
        return CertificateError(Refusal.UNKNOWN_VERSION, str(data[1]))
    return CertificateError(Refusal.MALFORMED, str(error))


def _member(body: CertificateBody, grant: Grant) -> Member:
    return Member(
        node_id=node_id(body.node_key),
        node_key=body.node_key,
        wg_key=body.wg_key,
        name=body.name,
        roles=grant.roles,
        labels=grant.labels,
        grant_id=grant.grant_id,
        grant_expires=grant.expires,
        issued=body.issued,
        founder=grant.founder,
        grant_count=grant.count,
    )
