"""Which node or grant a person means: a name, an id, or as much of an id as tells it apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from appliance.ledger import assigned
from appliance.ledger.assigned import read_id
from appliance.ledger.directory import GRANT_PREFIX, NODE_PREFIX, revocation_key
from appliance.ledger.rules import REVOKED
from appliance.ledger.state import Replica
from appliance.operator.errors import OperatorError
from appliance.operator.statements import read_reason
from provisioning.keys import id_text
from provisioning.membership import Member
from provisioning.names import is_name

SHOWN_MAX = 8
# Fewer letters are a slip of the finger rather than a node.
PREFIX_MIN = 3


class UnknownError(OperatorError):
    """Nobody, or more than one, goes by what was given."""


def names_of(replica: Replica, now_ms: int) -> dict[bytes, str]:
    """Return what the members are called: the name they were given, else their certificate's."""
    given = assigned.names(replica, now_ms)
    return {one.node_id: given.get(one.node_id, one.name) for one in replica.directory}


def find_node(text: str, replica: Replica, now_ms: int) -> Member:
    """Return the member that ``text`` means. Raises UnknownError with the candidates."""
    names = names_of(replica, now_ms)
    hits = [node for node, name in names.items() if name == text]
    hits = hits or _by_id(text, names)
    if len(hits) == 1:
        member = replica.directory.member(hits[0])
        assert member is not None  # noqa: S101 - names are of members
        return member
    node_id = read_id(text.lower())
    if node_id is not None and is_revoked(replica, NODE_PREFIX, node_id, now_ms):
        raise UnknownError(
            f"the node {text.lower()} is out for ever: a revocation is final",
            hint="give the machine a new token: it comes in as a new node",
        )
    if hits:
        raise UnknownError(
            f"{text!r} may be {_shown(hits, names)}",
            hint="give more of the id: skerry node ls",
        )
    if text in {revoked_name(value) for value in revoked_nodes(replica, now_ms).values()}:
        raise UnknownError(
            f"the node {text} is out for ever: a revocation is final",
            hint="give the machine a new token: it comes in as a new node",
        )
    raise UnknownError(
        f"no node is called {text!r}, and no id begins so",
        hint=f"known: {_shown(names, names)}" if names else "no node is known here yet",
    )


def find_revocable(text: str, replica: Replica, now_ms: int) -> bytes:
    """Return the id of the node meant; a whole id may be of one that is not known here."""
    node_id = read_id(text.lower())
    if node_id is not None and text not in names_of(replica, now_ms).values():
        return node_id
    return find_node(text, replica, now_ms).node_id


def find_grant(text: str, known: Iterable[bytes]) -> bytes:
    """Return the id of the grant meant; a whole id may be of one that is not known here."""
    whole = read_id(text.lower())
    if whole is not None:
        return whole
    names = dict.fromkeys(known, "")
    hits = _by_id(text, names)
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise UnknownError(
            f"{text!r} may be {_shown(hits, names)}", hint="give more of the id: skerry token ls"
        )
    raise UnknownError(
        f"no grant is known whose id begins with {text[:40]!r}",
        hint=f"known: {_shown(names, names)}" if names else "give the token, or the whole id",
    )


def is_revoked(replica: Replica, prefix: str, identifier: bytes, now_ms: int) -> bool:
    """Say whether a node (NODE_PREFIX) or a grant (GRANT_PREFIX) itself was revoked."""
    return replica.get(REVOKED, revocation_key(prefix, identifier), now_ms) is not None


def revoked_grants(replica: Replica, now_ms: int) -> dict[bytes, bytes]:
    """Return the revoked grants and what was said of them."""
    return _revoked(replica, GRANT_PREFIX, now_ms)


def revoked_nodes(replica: Replica, now_ms: int) -> dict[bytes, bytes]:
    """Return the revoked nodes and what was said of them."""
    return _revoked(replica, NODE_PREFIX, now_ms)


def revoked_reason(name: str, reason: str) -> str:
    """Return what is said of a node that goes: its name too, since nobody knows it any more."""
    return f"{name}: {reason}" if reason else name


def revoked_name(value: bytes) -> str:
    """Return the name in a revocation of `revoked_reason`; empty if there is none."""
    name = read_reason(value).partition(":")[0]
    return name if is_name(name) else ""


def _revoked(replica: Replica, prefix: str, now_ms: int) -> dict[bytes, bytes]:
    found = {}
    for entry in replica.entries(REVOKED, now_ms, prefix):
        identifier = read_id(entry.key.removeprefix(prefix))
        if identifier is not None:
            found[identifier] = entry.value
    return found


def _by_id(text: str, known: Iterable[bytes]) -> list[bytes]:
    wanted = text.lower()
    if len(wanted) < PREFIX_MIN:
        return []
    return sorted(one for one in known if id_text(one).startswith(wanted))


def _shown(some: Iterable[bytes], names: Mapping[bytes, str]) -> str:
    rows = sorted(f"{names[one]} ({id_text(one)})" if names[one] else id_text(one) for one in some)
    more = f" and {len(rows) - SHOWN_MAX} more" if len(rows) > SHOWN_MAX else ""
    return ", ".join(rows[:SHOWN_MAX]) + more
