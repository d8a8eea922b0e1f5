"""A network of four: A and B of the cluster without a name, C of `far`, D outside of all."""

from __future__ import annotations

from dataclasses import replace

from appliance.services.offers import Offer
from appliance.services.plan import Kubernetes, Member, Network, Way

A, B, C, D = (bytes([number]) * 16 for number in (1, 2, 3, 4))
NETWORK_ID = bytes(range(16))
NOTHING = Kubernetes()


def member(node: bytes, cluster: str | None = "", *, up: bool = True) -> Member:
    return Member(node, f"n{node[0]}", f"10.10.0.{node[0]}", up, cluster)


HOME = Network(
    NETWORK_ID,
    A,
    {one.node_id: one for one in (member(A), member(B), member(C, "far"), member(D, None))},
)


def among(*changed: Member, own: bytes = A) -> Network:
    return replace(HOME, own=own, members={**HOME.members, **{one.node_id: one for one in changed}})


def way(
    address: str,
    protocol: str,
    port: int,
    targets: tuple[tuple[str, int], ...],
    *,
    inward: bool = False,
) -> Way:
    return Way(inward, address, protocol, port, targets)


def offer(node: bytes, name: str = "db", protocol: str = "tcp", *, healthy: bool = True) -> Offer:
    return Offer(name, protocol, node, 5432, healthy)
