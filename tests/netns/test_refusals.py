"""Who has no business here is refused, and the log says why."""

from __future__ import annotations

import time

import pytest

from provisioning.identity import IdentityStore, new_identity, write_identity
from provisioning.membership import make_certificate
from provisioning.settings import Settings
from tests.netns.lab import PORT, Lab, Network, Node, wait_until

pytestmark = pytest.mark.netns


def refused(node: Node, cause: str, stranger: Node) -> bool:
    return node.said(rf"refused {stranger.address}:\d+: .*cause={cause}")


def stays_alone(node: Node) -> None:
    assert not [peer for peer in node.peers() if peer["up"]]
    assert not node.said("event=accepted")


def start_member(lab: Lab, network: Network) -> Node:
    member = lab.node()
    member.start(network.token())
    wait_until(member.overlay_addresses, 20, "the member's overlay is up")
    return member


def test_a_stranger_with_another_networks_token() -> None:
    with Lab() as lab:
        member = start_member(lab, Network())
        # It knows where the member is; by mDNS the two would not even see each other.
        other = Network("reef", settings=Settings(peers=(f"{member.address}:{PORT}",)))
        stranger = lab.node()
        stranger.start(other.token())
        wait_until(lambda: refused(member, "unsealed", stranger), 20, "the stranger is refused")
        assert member.said("another network's token")
        stays_alone(member)
        stays_alone(stranger)


def test_a_stranger_that_stole_the_discovery_seed() -> None:
    with Lab() as lab:
        network = Network()
        member = start_member(lab, network)
        thief = Network("reef", seed=network.info.otp_seed)
        stranger = lab.node()
        stranger.start(thief.token())
        wait_until(lambda: refused(member, "other-network", stranger), 20, "refused")
        stays_alone(member)
        stays_alone(stranger)


def test_an_expired_grant_lets_nobody_in_and_throws_nobody_out() -> None:
    with Lab() as lab:
        network = Network()
        member, early = start_member(lab, network), lab.node()
        now = time.time()
        expires = int(now) + 14
        token = network.token(expires=expires)
        early.start(token)
        wait_until(lambda: member.sees(early), 13, "the early one is let in before the expiry")
        # One that has made its certificate in time, and comes too late.
        late = lab.node()
        IdentityStore(late.state_dir / "identity").create(token, name="late", now=now)
        wait_until(lambda: time.time() > expires, 30, "the grant expires")
        late.start()
        wait_until(lambda: refused(member, "grant-expired", late), 20, "the late one is refused")
        early.stop()
        early.start()
        wait_until(lambda: early.sees(member), 20, "the early one is still in after a restart")
        assert not member.sees(late)


@pytest.mark.parametrize(("case", "cause"), [("tampered", "tampered"), ("forged", "forged-grant")])
def test_a_certificate_that_is_not_right(case: str, cause: str) -> None:
    with Lab() as lab:
        network = Network()
        member, stranger = start_member(lab, network), lab.node()
        file = stranger.folder / "identity"
        file.write_bytes(
            write_identity(new_identity(network.token(), name="mallory", now=time.time()))
        )
        stranger.start_module("tests.netns.hostile", case, member.address, str(PORT), str(file))
        wait_until(lambda: refused(member, cause, stranger), 20, "refused")
        stays_alone(member)


@pytest.mark.parametrize("known", [True, False])
def test_a_member_that_names_the_tunnel_key_of_another(known: bool) -> None:
    """Its own certificate and signatures are good: it holds a token of the network."""
    with Lab() as lab:
        network = Network()
        token, now = network.token(), time.time()
        member, victim, thief = start_member(lab, network), lab.node(), lab.node()
        identity = IdentityStore(victim.state_dir / "identity").create(
            token, name="victim", now=now
        )
        if known:
            victim.start()
            wait_until(lambda: member.sees(victim), 20, "member and victim meet")
        record = new_identity(token, name="mallory", now=now)
        certificate = make_certificate(
            network.info,
            token.grant,
            token.grant_seed,
            node_seed=record.node_seed,
            wg_key=identity.member().wg_key,
            name="mallory",
            issued=int(now),
        )
        files = thief.folder / "identity", thief.folder / "certificate"
        files[0].write_bytes(write_identity(record))
        files[1].write_bytes(certificate)
        words = (member.address, str(PORT), *map(str, files))
        thief.start_module("tests.netns.hostile", "stolen-key", *words)
        cause = "unproven-tunnel-key"
        wait_until(lambda: refused(member, cause, thief), 20, "the thief is refused")
        assert "mallory" not in {peer["name"] for peer in member.peers()}
        if not known:
            stays_alone(member)
            victim.start()
        wait_until(lambda: member.sees(victim) and victim.sees(member), 20, "the victim is a peer")
        (entry,) = [peer for peer in member.peers() if peer["name"] == "victim"]
        assert entry["endpoint"] == f"{victim.address}:{PORT}"
        wait_until(
            lambda: member.reaches(victim.overlay_addresses()[0]), 30, "the victim is reached"
        )
