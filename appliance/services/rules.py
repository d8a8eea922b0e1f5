"""The kernel's part: one nft table of ours, replaced in one transaction. Text only.

Connections are translated once, when they begin, to a backend drawn at random; then the kernel
remembers. What goes out into the overlay has the node's overlay address as its source, so answers
come back the same way, whoever asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.services.offers import SERVICE_RANGE
from appliance.services.plan import Way

TABLE = "inet skerry-services"
# Just before kube-proxy's and the pods' own chains (-100, 100): the first to translate wins.
_DSTNAT, _SRCNAT = -110, 90
# From where the node's own pods come (ours, and Flannel's); nobody else is let into the overlay.
_PODS = '"lo", "skerry-pods", "cni0"'


def script(ways: Sequence[Way], interface: str, own: str | None, *, guarded: bool = False) -> str:
    """Return the input of ``nft -f -`` that makes the kernel do exactly this.

    ``guarded``: the node forwards packets only for our sake, so nothing but translated connections
    and those of pods may pass.
    """
    lines = [f"table {TABLE}", f"delete table {TABLE}"]
    if own is None or not (ways or guarded):
        return "\n".join(lines) + "\n"
    lines.append(f"table {TABLE} {{")
    for at, way in enumerate(ways):
        lines += _backends(at, way)
    lines += _chain("outward", [_match(at, way) for at, way in enumerate(ways) if not way.inward])
    lines += _chain("inward", [_match(at, way) for at, way in enumerate(ways) if way.inward])
    lines += _chain(
        "prerouting",
        [
            f"type nat hook prerouting priority {_DSTNAT}; policy accept;",
            f"iifname {{ {_PODS} }} ip daddr {SERVICE_RANGE} jump outward",
            f'iifname "{interface}" ip daddr {own} jump inward',
        ],
    )
    lines += _chain(
        "output",
        [
            f"type nat hook output priority {_DSTNAT}; policy accept;",
            f"ip daddr {SERVICE_RANGE} jump outward",
        ],
    )
    # A service's address and an exposed port are all that we translate: `ct original` tells them.
    ports = [
        f"ct status dnat ct original ip daddr {own} meta l4proto {way.protocol} "
        f"ct original proto-dst {way.port} masquerade"
        for way in ways
        if way.inward
    ]
    ours = f"ct status dnat ct original ip daddr {SERVICE_RANGE}"
    lines += _chain(
        "postrouting",
        [
            f"type nat hook postrouting priority {_SRCNAT}; policy accept;",
            f'oifname {{ "lo", "{interface}" }} {ours} snat ip to {own}',
            f"{ours} masquerade",
            *ports,
        ],
    )
    # A backend on this node, asked by its pods: a UDP server that listens on all addresses answers
    # from the one it was asked at only if it is asked from there.
    lines += _chain(
        "input",
        [
            f"type nat hook input priority {_SRCNAT}; policy accept;",
            f"{ours} snat ip to {own}",
        ],
    )
    if guarded:
        lines += _chain(
            "forward",
            [
                "type filter hook forward priority filter; policy drop;",
                "ct state established,related accept",
                "ct status dnat accept",
                f"iifname {{ {_PODS} }} accept",
                f"oifname {{ {_PODS} }} accept",
            ],
        )
    lines.append("}")
    return "\n".join(lines) + "\n"


def _chain(name: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {one}" for one in rules), "  }"]


def _backends(at: int, way: Way) -> list[str]:
    lines: list[str] = []
    for number, (host, port) in enumerate(way.targets):
        rule = f"meta l4proto {way.protocol} dnat ip to {host}:{port}"
        lines += _chain(f"way-{at}-{number}", [rule])
    return lines


def _match(at: int, way: Way) -> str:
    found = f"ip daddr {way.address} {way.protocol} dport {way.port}"
    if len(way.targets) == 1:
        return f"{found} goto way-{at}-0"
    jumps = ", ".join(f"{number} : goto way-{at}-{number}" for number in range(len(way.targets)))
    return f"{found} numgen random mod {len(way.targets)} vmap {{ {jumps} }}"
