"""Who is in and who is not: revocation, counted grants, rotated tokens, with the real operator."""

from __future__ import annotations

import time

import pytest

from provisioning.identity import IdentityStore
from provisioning.token import make_token
from tests.netns.lab import Lab, Node, wait_until
from tests.netns.ledger import alike, entries, get, peers_up, put, reasons, together
from tests.netns.operators import Operator
from tests.netns.pinger import Pinger, Stream

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
GOAL_SECONDS = 3.0


def test_a_revoked_node_is_out_and_learns_nothing_new() -> None:
    with Lab() as lab:
        operator = Operator(lab.folder / "operator")
        token = operator.token()
        nodes = lab.crowd(4)
        for node in nodes:
            node.start(token)
        together(nodes)
        *rest, bad = nodes
        put(bad, "shared", "from-bad", b"old")
        put(rest[0], "shared", "before", b"old")
        alike(nodes, "shared", {"from-bad": "old", "before": "old"}, 15)
        with Pinger(node.namespace for node in nodes) as pinger:
            for node in rest:
                pinger.add(bad.namespace, node.overlay_addresses()[0])
                pinger.add(node.namespace, bad.overlay_addresses()[0])
            survivors = pinger.add(rest[0].namespace, rest[1].overlay_addresses()[0])
            # The first ping of a pair may wait for a handshake: seconds, if both begin one at once.
            assert not pinger.until_all(20), "they all reach each other before it is revoked"
            lost = survivors.sent - survivors.got
            with Stream(pinger):
                operator.revoke(rest[0], bad)
                # It is published; how long all of it takes, `make bench-ledger` tells.
                begun = time.monotonic()
                time.sleep(GOAL_SECONDS + 2)
                lasts = [path.last or 0.0 for path in pinger.paths if path is not survivors]
            assert max(lasts) - begun < GOAL_SECONDS, "a packet got through long afterwards"
            pinger.settle(survivors, 2)
            assert survivors.sent - survivors.got < lost + 10, "survivors lost packets, too"
        put(rest[1], "shared", "after", b"new-secret-thing")
        # What the revoked one wrote is gone, too.
        alike(rest, "shared", {"before": "old", "after": "new-secret-thing"}, 20)
        wait_until(lambda: not peers_up(bad), 60, "it has nobody left")
        bad.kill()
        bad.start()
        wait_until(lambda: "revoked" in reasons(bad), 45, f"it is told why: {reasons(bad)}")
        assert not peers_up(bad)
        assert all(entry.key != "after" for entry in entries(bad))
        assert get(bad, "shared", "after") is None
        assert all(bad.name not in peers_up(node) for node in rest)
        # A new token lets a new machine in; the old one's identity stays out.
        fresh = lab.node()
        fresh.start(operator.token())
        together([*rest, fresh], 60)
        assert get(fresh, "shared", "after") == "new-secret-thing"


def test_who_was_away_during_a_revocation_catches_up() -> None:
    with Lab() as lab:
        operator = Operator(lab.folder / "operator")
        token = operator.token()
        nodes = lab.crowd(4)
        for node in nodes:
            node.start(token)
        together(nodes)
        one, two, away, bad = nodes
        away.kill()
        operator.revoke(one, bad)
        operator.revoke(one)  # another epoch on top of it
        put(two, "shared", "meanwhile", b"m")
        wait_until(lambda: bad.name not in peers_up(one) | peers_up(two), 15, "it is out")
        away.start()
        together([one, two, away], 60)
        wait_until(lambda: get(away, "shared", "meanwhile") == "m", 45, "it catches up")
        wait_until(lambda: bad.name not in peers_up(away), 30, "it knows who is out")


def refused_one(nodes: list[Node]) -> Node | None:
    found = [node for node in nodes if "used" in reasons(node) or "count" in reasons(node)]
    return found[0] if len(found) == 1 else None


@pytest.mark.parametrize("apart", [False, True])
def test_a_token_for_two_lets_two_in(*, apart: bool) -> None:
    """Three use it; with ``apart``, on both sides of a network that is cut in two."""
    with Lab() as lab:
        operator = Operator(lab.folder / "operator")
        old, new = lab.crowd(2), lab.crowd(3)
        for node in old:
            node.start(operator.token())
        together(old)
        token = make_token(operator.info, operator.root_seed, now=time.time(), count=2)
        if apart:
            lab.cut([old[1], *new[1:]])
        for node in new:
            node.start(token)
        if apart:
            together([old[0], new[0]], 40)
            together([old[1], *new[1:]], 40)
            lab.heal()

        def settled() -> Node | None:
            """Return the one who is out, once all say so: who it is may change while they hear."""
            out = refused_one(new)
            inside = {node.name: node for node in [*old, *new] if node is not out}
            others = {name: set(inside) - {name} for name in inside}
            agreed = out and all(
                others[name] <= (up := peers_up(node)) and out.name not in up
                for name, node in inside.items()
            )
            return out if agreed else None

        wait_until(settled, 120, "two are in, and one is out for all")
        out = settled()
        assert out is not None, [reasons(node) for node in new]
        inside = [node for node in [*old, *new] if node is not out]
        if not apart:
            return
        # Everywhere the same two, also after all of them have begun anew.
        for node in inside:
            node.kill()
        for node in inside:
            node.start()
        together(inside, 60)
        assert refused_one(new) is out


def test_a_rotated_token_lets_nobody_in_and_throws_nobody_out() -> None:
    with Lab() as lab:
        operator = Operator(lab.folder / "operator")
        token = operator.token()
        nodes = lab.crowd(2)
        for node in nodes:
            node.start(token)
        together(nodes)
        late, new = lab.crowd(2)
        IdentityStore(late.state_dir / "identity").create(token, name=late.name, now=time.time())
        fresh = operator.rotated(nodes[0])
        late.start()
        new.start(fresh)
        together([*nodes, new], 60)
        wait_until(lambda: "closed" in reasons(late), 45, f"it is told why: {reasons(late)}")
        for node in nodes:
            node.kill()
            node.start()
        together([*nodes, new], 60)
        assert all(late.name not in peers_up(node) for node in [*nodes, new])
