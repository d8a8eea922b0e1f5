"""Members by address: networks that only a router joins, and a node behind a NAT."""

from __future__ import annotations

import pytest

from provisioning.settings import Settings
from tests.netns.lab import PORT, Lab, Network
from tests.netns.ledger import alike, put, together
from tests.netns.pinger import all_pairs

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]


@pytest.mark.parametrize("vpn", [True, False])
def test_networks_that_a_router_joins(*, vpn: bool) -> None:
    with Lab() as lab:
        left, right, far = lab.lan("10.1.1"), lab.lan("10.1.2"), lab.lan("10.1.3")
        public, one, two = lab.node(left), lab.node(right), lab.node(far)
        lab.router([left, right, far])
        settings = Settings(mdns=False, vpn=vpn, peers=(f"{public.address}:{PORT}",))
        token = Network(settings=settings).token()
        nodes = [public, one, two]
        for node in nodes:
            node.start(token)
        # The two know of each other only what the ledger says: their facts.
        together(nodes, 60)
        put(one, "shared", "from", b"afar")
        alike(nodes, "shared", {"from": "afar"}, 30)
        if vpn:
            addresses = {node.namespace: node.overlay_addresses()[0] for node in nodes}
            assert all_pairs(addresses, seconds=20) == []


def test_a_node_behind_a_nat_reaches_a_public_member() -> None:
    with Lab() as lab:
        street, home = lab.lan("10.1.1"), lab.lan("10.1.2")
        public, hidden = lab.node(street), lab.node(home)
        lab.router([street, home], hidden=[home])
        settings = Settings(mdns=False, peers=(f"{public.address}:{PORT}",))
        token = Network(settings=settings).token()
        for node in (hidden, public):
            node.start(token)
        together([public, hidden], 60)
        addresses = {node.namespace: node.overlay_addresses()[0] for node in (public, hidden)}
        assert all_pairs(addresses, seconds=20) == []
        put(hidden, "shared", "from", b"within")
        alike([public, hidden], "shared", {"from": "within"}, 30)
        # Each in turn begins anew; the public one can't call back by itself.
        public.kill()
        public.start()
        together([public, hidden], 60)
        hidden.kill()
        hidden.start()
        together([public, hidden], 60)
        assert all_pairs(addresses, seconds=20) == []
