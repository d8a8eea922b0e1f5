"""Networks, members and replicas for the ledger's tests; keys are made from small numbers."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from appliance.ledger.directory import Directory
from appliance.ledger.entry import Entry, make_entry
from appliance.ledger.hlc import Clock, stamp
from appliance.ledger.rules import MEMBER, REVOKED
from appliance.ledger.state import Replica
from appliance.ledger.writer import Writer
from provisioning import keys
from provisioning.grant import Grant, issue
from provisioning.keys import Context, id_text, public_key, sign
from provisioning.membership import make_certificate, node_id
from provisioning.network import NetworkInfo

NOW = 1_795_000_000_000


def seed(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@functools.cache
def network(number: int = 0) -> NetworkInfo:
    return NetworkInfo(f"net{number}", public_key(seed("root", number)), seed("otp", number))


def root_sign(data: bytes, number: int = 0) -> bytes:
    return sign(Context.LEDGER_ROOT, seed("root", number), data)


@functools.cache
def grant(number: int, roles: frozenset[str], *, net: int = 0, count: int | None = None) -> Grant:
    key = public_key(seed("grant", number))
    return issue(seed("root", net), key, roles=roles, labels={}, issued=1_700_000_000, count=count)


@dataclass(frozen=True)
class Node:
    """A member that can sign."""

    number: int
    node_id: bytes
    certificate: bytes
    seed: bytes = field(repr=False)
    grant_id: bytes = b""

    @property
    def text(self) -> str:
        return id_text(self.node_id)

    def sign(self, data: bytes) -> bytes:
        return sign(Context.MESSAGE, self.seed, data)


@functools.cache
def node(number: int, *, roles: tuple[str, ...] = ("agent",), net: int = 0, by: int = 0) -> Node:
    own = seed("node", number, net)
    granted = grant(by, frozenset(roles), net=net)
    certificate = make_certificate(
        network(net),
        granted,
        seed("grant", by),
        node_seed=own,
        wg_key=keys.wireguard_public_key(seed("wg", number)),
        name=f"n{number}",
        issued=1_700_000_001,
    )
    return Node(number, node_id(public_key(own)), certificate, own, granted.grant_id)


def entry(
    of: Node,
    bucket: str,
    key: str,
    value: bytes = b"",
    *,
    sequence: int = 1,
    ms: int = NOW,
    expires: int | None = None,
    deleted: bool = False,
    net: int = 0,
) -> Entry:
    return make_entry(
        of.sign,
        network(net).network_id,
        owner=of.node_id,
        sequence=sequence,
        stamp=stamp(ms),
        bucket=bucket,
        key=key,
        value=value,
        expires=expires,
        deleted=deleted,
    )


@functools.cache
def member_entry(of: Node) -> Entry:
    return entry(of, MEMBER, of.text, of.certificate)


def root_entry(
    bucket: str, key: str, value: bytes = b"", *, sequence: int = 1, deleted: bool = False
) -> Entry:
    return make_entry(
        root_sign,
        network().network_id,
        owner=network().network_id,
        sequence=sequence,
        stamp=stamp(NOW),
        bucket=bucket,
        key=key,
        value=value,
        deleted=deleted,
    )


def revocation(of: Node, *, sequence: int = 1) -> Entry:
    return root_entry(REVOKED, f"node/{of.text}", sequence=sequence)


def replica(members: Iterable[Node] = (), *, now: int = NOW) -> Replica:
    made = Replica(Directory(network()))
    for one in members:
        made.apply(member_entry(one), now)
    return made


def writer(of: Node, into: Replica, *, sequence: int = 0) -> Writer:
    return Writer(into, Clock(), owner=of.node_id, sign=of.sign, sequence=sequence)
