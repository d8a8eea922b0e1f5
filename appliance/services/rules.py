"""The kernel's part: one nft table of ours. Text for and from nft only.

Connections are translated once, when they begin, to a backend drawn at random; then the kernel
remembers. What goes out into the overlay has the node's overlay address as its source, so answers
come back the same way, whoever asked.

A change is three transactions, and the table and its base chains stay for ever: `lay` makes the
chains that are new, which nothing leads to yet; `switch` writes the base chains anew; `clear` takes
away what nothing leads to any more. The kernel changes all of a transaction at one moment, but a
packet that is under way then reads chains as of before: a table that replaces another has let
packets pass its guard, some 50 in 2,000 changes under a flood (docs/services.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

import msgspec

from appliance.services.errors import ServiceError
from appliance.services.offers import SERVICE_RANGE
from appliance.services.plan import Way

TABLE = "inet skerry-services"
# Just before kube-proxy's and the pods' own chains (-100, 100): the first to translate wins.
_DSTNAT, _SRCNAT = -110, 90
_BASE = {
    "prerouting": f"type nat hook prerouting priority {_DSTNAT}",
    "output": f"type nat hook output priority {_DSTNAT}",
    "postrouting": f"type nat hook postrouting priority {_SRCNAT}",
    "input": f"type nat hook input priority {_SRCNAT}",
    "here": "type filter hook input priority filter",
    # Drops by a last rule, not by its policy: a policy cannot change together with the rules.
    "through": "type filter hook forward priority filter",
}
# From where the node's own pods come (ours, and Flannel's); nobody else is let into the overlay.
_PODS = '"lo", "skerry-pods", "cni0"'


def lay(ways: Iterable[Way], present: Collection[str]) -> str:
    """Return the input of ``nft -f -`` that makes what of the ways is not ``present``.

    A chain's name is a digest of what it does, so one that is there is right.
    """
    lines = [f"add table {TABLE}"]
    lines += [
        f"add chain {TABLE} {name} {{ {what}; policy accept; }}" for name, what in _BASE.items()
    ]
    # First all chains, since some lead to others.
    new = {name: rule for name, rule in _chains(ways).items() if name not in present}
    lines += [f"add chain {TABLE} {name}" for name in new]
    lines += [f"add rule {TABLE} {name} {rule}" for name, rule in new.items()]
    return _text(lines)


def switch(ways: Sequence[Way], interface: str, own: str, *, guarded: bool = False) -> str:
    """Return what puts the ways in force that were laid, and no others.

    ``guarded``: the node forwards packets only for our sake, so nothing but translated connections
    and those of pods may pass.
    """
    outward = [f"{_asked(way)} goto {_way(way)}" for way in ways if not way.inward]
    inward = [f"{_asked(way)} goto {_way(way)}" for way in ways if way.inward and way.targets]
    pods = f"iifname {{ {_PODS} }}"
    ours = f"ct status dnat ct original ip daddr {SERVICE_RANGE}"
    # A service's address and an exposed port are all that we translate: `ct original` tells them.
    exposed = [
        f"ct status dnat ct original ip daddr {own} meta l4proto {way.protocol} "
        f"ct original proto-dst {way.port} masquerade"
        for way in ways
        if way.inward
    ]
    rules = {
        "prerouting": [
            *(f'iifname "{interface}" {one}' for one in inward),
            # There may be hundreds of services, and most connections are to none of them.
            f"ip daddr != {SERVICE_RANGE} return",
            *(f"{pods} {one}" for one in outward),
        ],
        "output": [f"ip daddr != {SERVICE_RANGE} return", *outward],
        "postrouting": [
            f'oifname {{ "lo", "{interface}" }} {ours} snat ip to {own}',
            f"{ours} masquerade",
            *exposed,
        ],
        # A backend on this node, asked by its pods: a UDP server that listens on all addresses
        # answers from the one it was asked at only if it is asked from there.
        "input": [f"{ours} snat ip to {own}"],
        # What was led nowhere is not for whatever else listens at the port on this node. (Answers
        # to the node itself come for a service's address, as which it asked, or for a port from
        # which it asked by chance.)
        "here": [
            f"ct status & dnat == 0 ip daddr {SERVICE_RANGE} reject",
            *(
                f'ct status & dnat == 0 ct direction original iifname "{interface}" '
                f"{_asked(way)} reject"
                for way in ways
                if way.inward
            ),
        ],
        "through": [
            "ct state established,related accept",
            "ct status dnat accept",
            f"{pods} accept",
            f"oifname {{ {_PODS} }} accept",
            "drop",
        ]
        if guarded
        else [],
    }
    lines = [f"flush chain {TABLE} {name}" for name in _BASE]
    lines += [f"add rule {TABLE} {name} {one}" for name, some in rules.items() for one in some]
    return _text(lines)


def clear(ways: Iterable[Way], present: Collection[str]) -> str:
    """Return what takes away the chains that are ``present`` and not needed; maybe nothing."""
    stale = sorted(set(present) - _chains(ways).keys() - _BASE.keys())
    lines = [f"flush chain {TABLE} {name}" for name in stale]
    return _text([*lines, *(f"delete chain {TABLE} {name}" for name in stale)])


class _Chain(msgspec.Struct):
    name: str
    table: str
    family: str


class _Part(msgspec.Struct):
    chain: _Chain | None = None


class _Listing(msgspec.Struct):
    nftables: tuple[_Part, ...]


def chains_in(listing: bytes) -> frozenset[str]:
    """Return our chains in what ``nft -j list chains`` printed. Raises ServiceError."""
    try:
        parts = msgspec.json.decode(listing, type=_Listing).nftables
    except (msgspec.MsgspecError, ValueError) as error:
        raise ServiceError(f"what nft lists can't be read: {error}") from error
    return frozenset(
        part.chain.name
        for part in parts
        if part.chain is not None and f"{part.chain.family} {part.chain.table}" == TABLE
    )


def _asked(way: Way) -> str:
    return f"ip daddr {way.address} {way.protocol} dport {way.port}"


def _chains(ways: Iterable[Way]) -> dict[str, str]:
    """Return the chains of the ways, each of one rule."""
    found: dict[str, str] = {}
    for way in ways:
        names = []
        for host, port in way.targets:
            rule = f"meta l4proto {way.protocol} dnat ip to {host}:{port}"
            names.append(_named("to", rule))
            found[names[-1]] = rule
        if len(names) > 1:
            found[_way(way)] = _drawn(names)
    return found


def _way(way: Way) -> str:
    """Return the chain that a way leads to: its only target's, or one that draws."""
    names = [
        _named("to", f"meta l4proto {way.protocol} dnat ip to {host}:{port}")
        for host, port in way.targets
    ]
    return names[0] if len(names) == 1 else _named("way", _drawn(names))


def _drawn(names: Sequence[str]) -> str:
    jumps = ", ".join(f"{number} : goto {name}" for number, name in enumerate(names))
    return f"numgen random mod {len(names)} vmap {{ {jumps} }}"


def _named(kind: str, rule: str) -> str:
    return f"{kind}-{hashlib.sha256(rule.encode()).hexdigest()[:16]}"


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
