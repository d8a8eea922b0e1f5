"""Our nftables table: masquerade for the node's pods, and the gate for new ones.

``inet skerry-pods`` holds two sets, ``pending_v4`` (``ipv4_addr``) and ``pending_v6``
(``ipv6_addr``): what these addresses send or are sent over the node is dropped, but for connections
that exist. An ADD puts a pod in, whoever enforces policies takes it out, a DEL does as well.
Everything here is text for and from nft.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from skerry.errors import SkerryError

TABLE = "skerry-pods"
SETS = {4: "pending_v4", 6: "pending_v6"}
_FAMILY = {4: "ip", 6: "ip6"}
_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
# What is never to be given the node's address: it does not leave the link.
_STAYS = {4: ("224.0.0.0/4", "255.255.255.255/32"), 6: ("ff00::/8", "fe80::/10")}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def table_text(
    bridge: str,
    ranges: Sequence[Network],
    direct: Sequence[Network],
    *,
    masquerade: bool,
    services: Sequence[Network] = (),
) -> str:
    """Return what makes the table be like this, in one transaction; the sets keep what they hold.

    ``direct`` are destinations for which pods keep their own address. ``services`` are addresses
    that only this node and its pods may ask for; without any, what was said before holds.
    """
    sets = "".join(f"set {SETS[one]} {{ type {_TYPE[one]}; }}\n" for one in (4, 6))
    chains = (
        "chain gate { type filter hook forward priority filter - 10; policy accept; }\n"
        "chain leave { type nat hook postrouting priority srcnat; policy accept; }\n"
    )
    gate = ["ct state established,related accept"]
    for version, name in SETS.items():
        gate += [f"{_FAMILY[version]} {end} @{name} drop" for end in ("saddr", "daddr")]
    leave = [_masquerade(bridge, one, direct) for one in ranges] if masquerade else []
    return (
        f"table inet {TABLE} {{\n{sets}{chains}}}\n"
        f"flush chain inet {TABLE} gate\nflush chain inet {TABLE} leave\n"
        f"table inet {TABLE} {{\n"
        f"chain gate {{\n{_lines(gate)}}}\nchain leave {{\n{_lines(leave)}}}\n}}\n"
        + (_guard(bridge, services) if services else "")
    )


def _guard(bridge: str, services: Sequence[Network]) -> str:
    """Return the chain that keeps Services' own addresses from whoever is on a node's uplink.

    The node forwards, and kube-proxy translates whatever comes by, with the node's own address as
    its source: a route to the node would lead a stranger to all that the cluster has inside.
    """
    rules = [
        f'iifname != {{ "lo", "{bridge}" }} {_FAMILY[one.version]} daddr {one} '
        "fib daddr type != local drop"
        for one in sorted(services, key=str)
    ]
    # Before destinations are changed (dstnat, -100). What is for the node itself is let through: an
    # uplink's network may have been chosen alike.
    head = "chain guard { type filter hook prerouting priority -150; policy accept; }\n"
    return (
        f"table inet {TABLE} {{\n{head}}}\nflush chain inet {TABLE} guard\n"
        f"table inet {TABLE} {{\nchain guard {{\n{_lines(rules)}}}\n}}\n"
    )


def hold_text(addresses: Iterable[str]) -> str:
    """Return what puts addresses into the gate."""
    return "".join(_element("add", one) for one in addresses)


def release_text(addresses: Iterable[str]) -> str:
    """Return what takes addresses out of the gate, whether they are in it or not."""
    return "".join(_element("add", one) + _element("delete", one) for one in addresses)


class _Set(msgspec.Struct):
    name: str = ""
    elem: tuple[str, ...] = ()


class _Part(msgspec.Struct):
    set: _Set | None = None


class _Listing(msgspec.Struct):
    nftables: tuple[_Part, ...]


def held(listing: bytes) -> frozenset[str]:
    """Return the addresses at the gate in what ``nft -j list table`` printed."""
    try:
        parts = msgspec.json.decode(listing, type=_Listing).nftables
    except msgspec.MsgspecError as error:
        raise SkerryError(f"what nft lists of {TABLE} can't be read: {error}") from error
    names = set(SETS.values())
    return frozenset(
        address
        for part in parts
        if part.set is not None and part.set.name in names
        for address in part.set.elem
    )


def _masquerade(bridge: str, pods: Network, direct: Sequence[Network]) -> str:
    stays = {one for one in direct if one.version == pods.version}
    stays |= set(map(ipaddress.ip_network, _STAYS[pods.version]))
    # One within another would be refused.
    kept = ", ".join(
        str(one)
        for one in sorted(stays, key=str)
        if not any(one != other and _within(one, other) for other in stays)
    )
    family = _FAMILY[pods.version]
    return f'oifname != "{bridge}" {family} saddr {pods} {family} daddr != {{ {kept} }} masquerade'


def _within(one: Network, other: Network) -> bool:
    return one.network_address in other and one.prefixlen >= other.prefixlen


def _element(verb: str, address: str) -> str:
    version = ipaddress.ip_address(address).version
    return f"{verb} element inet {TABLE} {SETS[version]} {{ {address} }}\n"


def _lines(rules: Iterable[str]) -> str:
    return "".join(f"{one}\n" for one in rules)
