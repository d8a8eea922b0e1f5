"""Forgets connections: a node that is out must not go on in those it has. Blocking; rare."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)

_TUPLES = ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY")
_ENDS = ("SRC", "DST")


def flush(prefixes: Iterable[str]) -> int:
    """Forget the connections from or to these addresses or networks; return how many.

    A kernel without connection tracking has none to forget.
    """
    networks = [ipaddress.ip_network(one) for one in prefixes]
    forgotten = 0
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        wanted = [one for one in networks if one.version == version]
        if not wanted:
            continue
        try:
            forgotten += _flush(family, version, wanted)
        except Exception as error:  # noqa: BLE001 - netlink, its library, or no such kernel
            # Whatever is the matter with it: WireGuard has removed the peer already.
            log.info("connections can't be forgotten: %s", error)
    return forgotten


def _flush(family: int, version: int, networks: list[Any]) -> int:
    # A large module that next to no node ever needs.
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

    forgotten = 0
    with NFCTSocket(nfgen_family=family) as tracker:
        for entry in tuple(tracker.dump()):
            hosts = [host for name in _TUPLES for host in _hosts(entry, name, version)]
            if any(host in network for host in hosts for network in networks):
                original = NFCTAttrTuple.from_netlink(family, entry.get_attr(_TUPLES[0]))
                tracker.entry("del", tuple_orig=original)
                forgotten += 1
    return forgotten


def _hosts(entry: Any, name: str, version: int) -> list[Any]:  # noqa: ANN401 - pyroute2 is untyped
    found = entry.get_attr(name)
    ip = found.get_attr("CTA_TUPLE_IP") if found is not None else None
    hosts = [ip.get_attr(f"CTA_IP_V{version}_{end}") for end in _ENDS] if ip is not None else []
    return [ipaddress.ip_address(one) for one in hosts if one is not None]
