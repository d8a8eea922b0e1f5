"""Counts a node's traffic on its uplink by what it is, with nftables in its namespace."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.netns.lab import PORT, Node, feed, run

# A datagram of WireGuard begins with its type, 1 to 4, and three zero bytes.
_RULES = f"""
table inet count {{
  counter mdns {{ }}
  counter tunnel {{ }}
  counter control {{ }}
  counter other {{ }}
  chain sort {{
    udp dport 5353 counter name mdns return
    udp dport {PORT} @th,64,32 {{ 0x01000000, 0x02000000, 0x03000000, 0x04000000 }} \
counter name tunnel return
    udp dport {PORT} counter name control return
    counter name other
  }}
  chain in {{ type filter hook input priority 0; iifname "eth0" jump sort; }}
  chain out {{ type filter hook output priority 0; oifname "eth0" jump sort; }}
}}
"""
KINDS = ("mdns", "control", "tunnel", "other")


def install(node: Node) -> None:
    """Begin to count."""
    feed(_RULES, *node.command("nft", "-f", "-"))


def read(node: Node) -> Mapping[str, int]:
    """Return bytes, IP headers included, received and sent so far, by `KINDS`."""
    listed = json.loads(run(*node.command("nft", "-j", "list", "counters")))["nftables"]
    found = (one["counter"] for one in listed if "counter" in one)
    return {str(one["name"]): int(one["bytes"]) for one in found}
