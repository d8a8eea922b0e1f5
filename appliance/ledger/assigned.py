"""What the root key says of nodes and grants, in the bucket ``assigned``: keys and values.

A statement is read strictly; one that is malformed counts for nothing, as if it were not there. A
deleted one is taken back. Several nodes may be given one address or one name by mistake (two
operators at once); who has it then is the reader's question (`claims.View.rank` for addresses).
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from appliance.ledger.errors import LedgerError
from appliance.ledger.rules import ASSIGNED, BUCKETS
from appliance.ledger.state import Replica
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import ID_SIZE, id_text
from provisioning.membership import Member
from provisioning.names import are_labels, check_name, is_name

ADDRESS, NAME, LABELS, ADMITTED, CLOSED = "address", "name", "labels", "admitted", "closed"
RANGE = "range"
# Whatever is said of a node: it goes with it.
ABOUT_NODE = (ADDRESS, RANGE, NAME, LABELS, ADMITTED)
# Labels of this prefix have a meaning for nodes: they come from a grant, never from a statement.
RESERVED_LABELS = "skerry.internal/"
MARK = b"\x01"
VALUE_MAX = BUCKETS[ASSIGNED].value_max
_GRANT = "grant/"
T = TypeVar("T")


class StatementError(LedgerError):
    """What no statement can say."""


# Writing


def node_key(node_id: bytes, kind: str) -> str:
    """Return the key of a statement about a node: one of ABOUT_NODE."""
    return f"{id_text(node_id)}/{kind}"


def closed_key(grant_id: bytes) -> str:
    """Return the key of the statement that a grant lets nobody new in (its value: MARK)."""
    return f"{_GRANT}{id_text(grant_id)}/{CLOSED}"


def address_value(address: ipaddress.IPv4Address) -> bytes:
    """Return the value that fixes an address; whether the range has it is the caller's question."""
    return address.packed


def name_value(name: str) -> bytes:
    """Return the value that names a node. Raises ProvisioningError for what is no name."""
    return check_name(name, "node").encode()


def labels_value(labels: Mapping[str, str]) -> bytes:
    """Return the value that says *all* labels of a node. Raises StatementError."""
    reserved = next((key for key in labels if key.startswith(RESERVED_LABELS)), None)
    if reserved is not None:
        raise StatementError(
            f"the label {reserved} is Skerry's own", hint="choose a key with another prefix"
        )
    if not are_labels(labels):
        raise StatementError(
            "these cannot be the labels of a node",
            hint="16 at most; keys and values are 1 to 63 of A-Z a-z 0-9 . _ / -, beginning and "
            "ending with a letter or digit",
        )
    value = codec.encode(tuple(sorted(labels.items())))
    if len(value) > VALUE_MAX:
        raise StatementError(
            f"the labels take {len(value)} bytes together, a statement holds {VALUE_MAX}",
            hint="use fewer or shorter ones",
        )
    return value


# Reading


def closed_grants(replica: Replica, now_ms: int) -> frozenset[bytes]:
    """Return the grants that let nobody new in."""
    found = set()
    for entry in replica.entries(ASSIGNED, now_ms, _GRANT):
        middle, slash, kind = entry.key.removeprefix(_GRANT).partition("/")
        grant_id = read_id(middle)
        if slash and kind == CLOSED and grant_id is not None and entry.value == MARK:
            found.add(grant_id)
    return frozenset(found)


def admitted_for_good(replica: Replica, now_ms: int) -> frozenset[bytes]:
    """Return the nodes that are in whatever becomes of their grant, short of a revocation."""
    return frozenset(_about(replica, now_ms, ADMITTED, lambda value: value == MARK or None))


def addresses(
    replica: Replica, now_ms: int, host_range: ipaddress.IPv4Network
) -> dict[bytes, ipaddress.IPv4Address]:
    """Return the fixed addresses by node; one that the range cannot give away counts for nothing.

    The same as `claims.View.fixed`, for people.
    """
    return _about(replica, now_ms, ADDRESS, lambda value: read_address(value, host_range))


def names(replica: Replica, now_ms: int) -> dict[bytes, str]:
    """Return the names that nodes were given; the others go by their certificate's."""
    return _about(replica, now_ms, NAME, _read_name)


def labels(replica: Replica, now_ms: int) -> dict[bytes, dict[str, str]]:
    """Return all labels of the nodes that were given some; the others have their grant's."""
    return _about(replica, now_ms, LABELS, _read_labels)


def labels_of(member: Member, given: Mapping[bytes, Mapping[str, str]]) -> dict[str, str]:
    """Return a member's labels: what ``given`` (`labels`) says, else its grant's.

    The grant's reserved ones stay in any case: no statement adds or removes them.
    """
    own = dict(member.labels)
    said = given.get(member.node_id)
    if said is None:
        return own
    return {key: one for key, one in own.items() if key.startswith(RESERVED_LABELS)} | dict(said)


def read_id(text: str) -> bytes | None:
    """Return the id that `id_text` wrote so, or None for any other text."""
    try:
        found = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        return None
    return found if len(found) == ID_SIZE and id_text(found) == text else None


def read_address(value: bytes, host_range: ipaddress.IPv4Network) -> ipaddress.IPv4Address | None:
    """Return the address in a value, if it is one that the range may give to a node."""
    if len(value) != 4:
        return None
    address = ipaddress.IPv4Address(value)
    edges = host_range.network_address, host_range.broadcast_address
    return address if address in host_range and address not in edges else None


def _read_name(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if is_name(text) else None


def _read_labels(value: bytes) -> dict[str, str] | None:
    try:
        pairs = codec.decode(value, tuple[tuple[str, str], ...], limit=VALUE_MAX)
    except FormatError:
        return None
    found = dict(pairs)
    right = (
        are_labels(found)
        and pairs == tuple(sorted(found.items()))
        and not any(key.startswith(RESERVED_LABELS) for key in found)
    )
    return found if right else None


def _about(
    replica: Replica, now_ms: int, kind: str, read: Callable[[bytes], T | None]
) -> dict[bytes, T]:
    """Return what well-formed statements of one kind say, by node."""
    return dict(_statements(replica, now_ms, kind, read))


def _statements(
    replica: Replica, now_ms: int, kind: str, read: Callable[[bytes], T | None]
) -> Iterator[tuple[bytes, T]]:
    for entry in replica.entries(ASSIGNED, now_ms):
        node, _, what = entry.key.partition("/")
        node_id = read_id(node) if what == kind else None
        value = read(entry.value) if node_id is not None else None
        if node_id is not None and value is not None:
            yield node_id, value
