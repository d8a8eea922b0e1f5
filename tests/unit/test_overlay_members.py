"""Who is let in, who is told why not, who is thrown out, and who has which address."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest

from appliance.overlay import events, wire
from appliance.overlay.action_queue import ActionQueue
from appliance.overlay.admission import Denied
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.handshake import signed_message
from appliance.overlay.wire import Kind, RefusalBody, decode_refusal
from provisioning import codec
from provisioning.membership import Member
from tests.unit.overlay_world import PORT, UNIX, Host, World, make_identity

REVOKED = Denied("revoked", "revoked by the operator: stolen")


class List:
    """A policy: these are out."""

    def __init__(self) -> None:
        self.out: dict[bytes, Denied] = {}
        self.asked: list[str] = []

    def __call__(self, member: Member) -> Denied | None:
        self.asked.append(member.name)
        return self.out.get(member.node_id)


def pair(*, vpn: bool = True) -> tuple[World, Host, Host, List]:
    world, policy = World(vpn=vpn), List()
    one = world.add(make_identity("one"), admits=policy)
    return world, one, world.add(make_identity("two")), policy


def acquainted(*, vpn: bool = True) -> tuple[World, Host, Host, List]:
    world, one, two, policy = pair(vpn=vpn)
    world.introduce(two, one)
    assert world.run(5, until=lambda: one.node_id in two.up() and two.node_id in one.up())
    world.run(1)
    return world, one, two, policy


# Admission


def test_the_policy_decides_even_about_an_expired_grant() -> None:
    world, policy = World(), List()
    one = world.add(make_identity("one"), admits=policy)
    two = world.add(make_identity("two", expires=int(UNIX) - 10))
    world.introduce(two, one)
    world.run(5)
    assert two.node_id in one.core.peers
    assert "two" in policy.asked


@pytest.mark.parametrize("denied_begins", [True, False])
def test_who_is_not_let_in_is_told_why(denied_begins: bool) -> None:
    world, one, two, policy = pair()
    policy.out[two.node_id] = REVOKED
    world.introduce(*((two, one) if denied_begins else (one, two)))
    world.run(20)
    assert two.node_id not in one.core.peers
    assert two.key not in one.wireguard
    assert "revoked" in one.causes()
    told = world.said(two, events.RefusedBy)
    assert bool(told) is denied_begins
    assert all(
        one_told == events.RefusedBy(one.node_id, "one", "revoked", REVOKED.detail)
        for one_told in told
    )


def test_a_refusal_is_no_longer_than_its_question_and_long_words_are_cut() -> None:
    world, one, two, policy = pair()
    policy.out[two.node_id] = Denied("grant-used-up", "x\n" * 300)
    world.introduce(two, one)
    world.run(0.3)
    (_, _, hello), (source, _, refusal) = world.sent[:2]
    assert source.host == one.address
    assert len(refusal) <= len(hello)
    (told,) = world.said(two, events.RefusedBy)
    assert told.cause == "grant-used-up"
    assert len(told.detail) > 60
    assert told.detail.isprintable()


def test_who_was_refused_does_not_hammer() -> None:
    world, one, two, policy = pair()
    policy.out[two.node_id] = REVOKED
    world.introduce(two, one)
    world.run(600)
    hellos = [sent for sent in world.sent if sent[0].host == two.address]
    assert 2 <= len(hellos) <= 12
    del policy.out[two.node_id]
    assert world.run(70, until=lambda: two.node_id in one.core.peers)


def test_who_becomes_unwelcome_between_two_messages_stays_out() -> None:
    world, one, two, policy = pair()
    world.introduce(two, one)
    world.run(0.0015)  # HELLO has been answered
    policy.out[two.node_id] = REVOKED
    world.run(20)
    assert two.node_id not in one.core.peers
    assert world.said(two, events.RefusedBy)


# Forged refusals


def refusal(world: World, by: Host, to: Host, echo: bytes, *, network: bytes | None = None) -> None:
    """Let ``by`` say that ``to`` is not let in."""
    body = RefusalBody(
        network or by.core.identity.network.network_id, 0, to.node_id, echo, "revoked", "go away"
    )
    message = signed_message(by.core.identity, Kind.REFUSAL, body)
    place = Endpoint(to.address, PORT)
    world.do(by, by.core._post.outside(message, place, 0, world.moment()))
    world.run(0.01)


def outgoing(host: Host) -> bytes:
    return next(iter(host.core._handshakes._outgoing))


def test_a_refusal_needs_the_nonce_of_a_question() -> None:
    world, one, two, _ = pair()
    evil = world.add(make_identity("evil"))
    one.alive = False
    world.introduce(two, one)
    refusal(world, evil, two, b"n" * 16)
    assert not world.said(two, events.RefusedBy)
    assert "replayed" in two.causes()
    nonce = outgoing(two)
    refusal(world, evil, two, nonce, network=b"x" * 16)
    assert not world.said(two, events.RefusedBy)
    refusal(world, evil, two, nonce)
    assert [told.name for told in world.said(two, events.RefusedBy)] == ["evil"]
    # Once.
    refusal(world, evil, two, nonce)
    assert len(world.said(two, events.RefusedBy)) == 1


def test_a_stranger_refuses_nobody() -> None:
    world, one, two, _ = pair()
    stranger = world.add(make_identity("stranger", root_seed=b"\x09" * 32))
    one.alive = False
    world.introduce(two, one)
    ours = one.core.identity.network.network_id
    refusal(world, stranger, two, outgoing(two), network=ours)
    assert not world.said(two, events.RefusedBy)
    assert two.causes() & {"other-network", "forged-grant"}


def test_who_is_out_itself_refuses_nobody() -> None:
    world, one, two, policy = pair()
    policy.out[two.node_id] = REVOKED
    world.introduce(one, two)
    refusal(world, two, one, outgoing(one))
    assert not world.said(one, events.RefusedBy)


def test_the_wrong_kind_of_words_is_malformed() -> None:
    body = RefusalBody(b"n" * 16, 0, b"t" * 16, b"e" * 16, "cause", "words")
    assert decode_refusal(codec.encode(body)) == body
    for wrong in ({"cause": "x" * 40}, {"cause": ""}, {"detail": "a\x1b[2J"}, {"echo": b""}):
        fields = {name: getattr(body, name) for name in body.__struct_fields__} | wrong
        with pytest.raises(WireError) as caught:
            decode_refusal(codec.encode(RefusalBody(**fields)))
        assert caught.value.cause == "malformed"


# Expulsion


@pytest.mark.parametrize("vpn", [True, False])
def test_who_is_expelled_is_out_at_once_and_unheard(vpn: bool) -> None:
    world, one, two, policy = acquainted(vpn=vpn)
    policy.out[two.node_id] = REVOKED
    peer, generation = one.core.peers[two.node_id], one.core.generation
    session = two.core._courier.sessions.latest(one.node_id)
    assert session is not None
    actions = one.core.expel(two.node_id, "revoked", REVOKED.detail, world.moment())
    if vpn:
        assert actions[0] == events.RemovePeer(two.key)
        assert actions[1] == events.FlushConntrack((f"{peer.ipv6}/128", f"{two.ipv4}/32"))
    world.do(one, actions)
    assert two.key not in one.wireguard
    assert peer.store_key not in one.store
    assert one.core.generation > generation
    assert one.core.contacts() == frozenset()
    assert one.core.carry(two.node_id, b"x", world.moment()) == []
    # Whatever it still says counts for nothing.
    carried = session.seal(Kind.GOSSIP, two.node_id, 0, b"let me in")
    message = wire.encode_message(Kind.GOSSIP, carried)
    place = Endpoint(one.address, PORT)
    world.do(two, two.core._post.outside(message, place, 0, world.moment()))
    world.feed(two, events.LocalAddresses(("192.168.1.77",)))
    world.run(120)
    assert not world.said(one, events.Delivered)
    assert two.node_id not in one.core.peers
    assert two.key not in one.wireguard
    assert world.said(two, events.RefusedBy)
    world.restart(one)
    assert two.node_id not in one.core.peers


def test_a_handshake_under_way_is_broken_off() -> None:
    world, one, two, policy = pair()
    world.introduce(two, one)
    world.run(0.0015)
    assert one.core._handshakes._half_open
    policy.out[two.node_id] = REVOKED
    assert one.core.expel(two.node_id, "revoked", "", world.moment()) == []
    assert not one.core._handshakes._half_open
    world.run(5)
    assert two.node_id not in one.core.peers


def test_what_was_revoked_while_the_node_was_off_is_removed_at_the_start() -> None:
    world, one, two, policy = acquainted()
    policy.out[two.node_id] = REVOKED
    address, two.ipv4 = two.ipv4, None  # whoever is out has none
    world.restart(one)
    assert two.key not in one.wireguard
    assert two.node_id not in one.core.peers
    # It is the tunnel of the earlier run that knows from where it sent.
    (flushed,) = world.said(one, events.FlushConntrack)
    assert set(flushed.addresses) == {f"{two.core.ipv6}/128", f"{address}/32"}
    assert not any(two.core.identity.id_text in key for key in one.store)


def test_a_removal_waits_for_nothing_and_what_was_to_be_set_is_not() -> None:
    async def run() -> list[events.Action]:
        queue = ActionQueue()
        key, other = b"k" * 32, b"o" * 32
        queue.put([events.SetPeer(key, None, ()), events.SetPeer(other, None, ())])
        queue.put([events.ReadStats(), events.SetPeer(key, None, ("10.0.0.1/32",))])
        queue.put([events.RemovePeer(key), events.FlushConntrack(())])
        queue.put([events.SetPeer(key, None, ())])  # let in anew
        return [await queue.take() for _ in range(len(queue))]

    key, other = b"k" * 32, b"o" * 32
    assert asyncio.run(run()) == [
        events.RemovePeer(key),
        events.SetPeer(other, None, ()),
        events.ReadStats(),
        events.FlushConntrack(()),
        events.SetPeer(key, None, ()),
    ]


# Addresses


def test_addresses_are_what_the_owner_says() -> None:
    world, one, two, _ = acquainted()
    mine, theirs = ipaddress.IPv4Address("10.10.0.7"), ipaddress.IPv4Address("10.10.0.8")
    world.do(one, one.core.set_addresses(mine, {two.node_id: theirs}, world.moment()))
    assert one.own == events.SetAddresses(mine, one.core.ipv6)
    assert one.wireguard[two.key].allowed == (f"{theirs}/32", f"{two.core.ipv6}/128")
    # Nobody but the owner of the core takes it away, and no handshake gives it.
    world.restart(two)
    world.run(10)
    assert one.wireguard[two.key].allowed == (f"{theirs}/32", f"{two.core.ipv6}/128")
    assert one.core.set_addresses(mine, {two.node_id: theirs}, world.moment()) == []
    world.do(one, one.core.set_addresses(mine, {}, world.moment()))
    assert one.wireguard[two.key].allowed == (f"{two.core.ipv6}/128",)
    world.do(one, one.core.set_addresses(mine, {two.node_id: mine}, world.moment()))
    assert one.wireguard[two.key].allowed == (f"{two.core.ipv6}/128",)


def test_networks_behind_a_member_come_and_go_with_what_the_owner_says() -> None:
    world, one, two, _ = acquainted()
    mine, theirs = ipaddress.IPv4Address("10.10.0.7"), ipaddress.IPv4Address("10.10.0.8")
    here, there = ("10.244.1.0/24",), ("10.244.2.0/24", "fd00:1:0:af4:200::/80")
    networks = {one.node_id: here, two.node_id: there, bytes(16): ("10.244.3.0/24",)}
    others = {two.node_id: theirs}
    say = one.core.set_addresses
    world.do(one, say(mine, others, world.moment(), networks=networks))
    assert one.own == events.SetAddresses(mine, one.core.ipv6, here)
    assert one.wireguard[two.key].allowed == (f"{theirs}/32", f"{two.core.ipv6}/128", *there)
    assert say(mine, others, world.moment(), networks=networks) == []
    (moved,) = say(mine, others, world.moment(), networks={two.node_id: there})
    assert moved == events.SetAddresses(mine, one.core.ipv6)
    gone = one.core.expel(two.node_id, "revoked", "a test", world.moment())
    (flushed,) = [action for action in gone if isinstance(action, events.FlushConntrack)]
    assert set(there) <= set(flushed.addresses)


def test_a_node_that_has_no_address_says_so() -> None:
    world, one, two, _ = acquainted()
    world.do(one, one.core.set_addresses(None, {}, world.moment()))
    assert one.own == events.SetAddresses(None, one.core.ipv6)
    assert one.core.ipv4 is None
    world.run(15)
    assert two.node_id in one.up()


def test_a_doubted_member_is_probed_at_once_and_down_soon() -> None:
    world, one, two, _ = acquainted()
    world.run(30)
    world.do(one, one.core.doubt(two.node_id, world.moment()))
    world.run(2)
    assert two.node_id in one.up()
    two.alive = False
    world.do(one, one.core.doubt(two.node_id, world.moment()))
    world.do(one, one.core.doubt(two.node_id, world.moment()))
    assert world.run(2, until=lambda: two.node_id not in one.up())
    assert one.core.doubt(b"?" * 16, world.moment()) == []
