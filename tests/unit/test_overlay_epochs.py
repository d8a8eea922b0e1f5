"""Secret epochs in the overlay: who speaks in which, what of an old one is read, catching up."""

from __future__ import annotations

import pytest

from appliance.ledger.epochs import OVERLAP_MS, Reading
from appliance.overlay import events, wire
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.keyring import EPOCHS_MAX, Keyring
from appliance.overlay.otp import Seed
from appliance.overlay.seal import Sealer
from appliance.overlay.wire import Kind, Probe, Signed, decode_body
from tests.unit.overlay_world import OTP_SEED, PORT, UNIX, Host, World, make_identity

OVERLAP = OVERLAP_MS / 1000
SECRETS = {0: OTP_SEED, **{epoch: bytes([epoch] * 32) for epoch in range(1, 9)}}


def know(world: World, host: Host, *epochs: int) -> None:
    """Give a host the secrets of these epochs; the last one is current since now."""
    secrets = {epoch: SECRETS[epoch] for epoch in epochs}
    host.core.set_secrets(secrets, epochs[-1], world.moment().unix)
    world.feed(host, events.Tick())


def pair(*, vpn: bool = True) -> tuple[World, Host, Host]:
    world = World(vpn=vpn)
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    world.introduce(one, two)
    assert world.run(5, until=lambda: one.node_id in two.up() and two.node_id in one.up())
    world.run(1)
    return world, one, two


def epochs_of(world: World, source: Host, since: int) -> list[int]:
    """Return the epochs in which a host sent datagrams to the control port."""
    sealer = Sealer(Keyring(Seed(OTP_SEED, 0)))
    sealer.keyring.replace({e: SECRETS[e] for e in range(4)}, 3, UNIX)
    opened = [
        sealer.unseal(data, UNIX + world.now)
        for sender, _, data in world.sent[since:]
        if sender.host == source.address
    ]
    return [one.epoch for one in opened if one is not None]


def carry(world: World, host: Host, to: Host, data: bytes = b"x") -> None:
    world.do(host, host.core.carry(to.node_id, data, world.moment()))
    world.run(0.1)


# A new epoch


@pytest.mark.parametrize("vpn", [True, False])
def test_all_go_on_under_the_new_secret_and_nothing_is_lost_meanwhile(vpn: bool) -> None:
    world, one, two = pair(vpn=vpn)
    know(world, one, 0, 1)
    assert world.said(one, events.EpochsChanged)
    carry(world, one, two, b"early")
    carry(world, two, one, b"old")
    world.run(3)
    assert one.core.peers[two.node_id].epoch == 0
    know(world, two, 0, 1)
    world.run(3)
    assert {host.core.peers[other.node_id].epoch for host, other in ((one, two), (two, one))} == {1}
    since = len(world.sent)
    carry(world, one, two, b"new")
    if not vpn:
        assert epochs_of(world, one, since) == [1]
    assert [told.data for told in world.said(two, events.Delivered)] == [b"early", b"new"]
    assert [told.data for told in world.said(one, events.Delivered)] == [b"old"]
    assert two.node_id in one.up()


def test_a_member_that_speaks_in_an_older_epoch_is_reported_now_and_then() -> None:
    world, one, two = pair(vpn=False)
    know(world, one, 0, 1)
    for _ in range(40):
        carry(world, two, one)
    assert set(world.said(one, events.Behind)) == {events.Behind(two.node_id, 0)}
    assert 1 <= len(world.said(one, events.Behind)) <= 3
    know(world, two, 0, 1)
    world.run(5)
    one.told.clear()
    carry(world, two, one)
    assert not world.said(one, events.Behind)


def test_what_comes_late_in_the_old_epoch_does_not_take_a_peer_back() -> None:
    world, one, two = pair(vpn=False)
    session = two.core._courier.sessions.latest(one.node_id)
    assert session is not None
    late = session.seal(Kind.GOSSIP, two.node_id, 0, b"late")
    know(world, one, 0, 1)
    know(world, two, 0, 1)
    world.run(5)
    one.told.clear()
    message = wire.encode_message(Kind.GOSSIP, late)
    world.do(two, two.core._post.outside(message, Endpoint(one.address, PORT), 0, world.moment()))
    world.run(0.1)
    assert world.said(one, events.Delivered)
    assert one.core.peers[two.node_id].epoch == 1
    assert not world.said(one, events.Behind)


# After the overlap


@pytest.mark.parametrize("vpn", [True, False])
def test_old_gossip_and_probes_are_not_read_after_the_overlap_but_catching_up_is(vpn: bool) -> None:
    world, one, two = pair(vpn=vpn)
    know(world, one, 0, 1)
    world.run(OVERLAP + 1)
    one.told.clear()
    session = two.core._courier.sessions.latest(one.node_id)
    assert session is not None
    place = Endpoint(one.address, PORT)
    for kind in (Kind.GOSSIP, Kind.CATCH_UP):
        message = wire.encode_message(kind, session.seal(kind, two.node_id, 0, kind.name.encode()))
        world.do(two, two.core._post.outside(message, place, 0, world.moment()))
    probe = wire.encode_message(Kind.PROBE, Probe(two.node_id, b"t" * 8))
    (inside,) = two.core._post.inside(probe, str(one.core.ipv6), 0, world.moment())
    assert isinstance(inside, events.SendInside)
    before = one.actions
    world.feed(one, events.ProbeReceived(inside.data, str(two.core.ipv6)))
    assert one.actions <= before + 1  # a log line; no echo
    world.run(1)
    assert not world.said(one, events.Delivered)
    assert [told.data for told in world.said(one, events.CaughtUp)] == [b"CATCH_UP"]
    assert "old-epoch" in one.causes()


def test_a_member_that_was_away_is_let_in_under_the_old_epoch_and_caught_up() -> None:
    world, one, two = pair()
    two.alive = False
    world.run(40)
    know(world, one, 0, 1)
    world.run(OVERLAP + 100)
    two.alive = True
    one.told.clear()
    since = len(world.sent)
    world.restart(two)
    assert world.run(90, until=lambda: bool(world.said(one, events.Behind)))
    assert set(epochs_of(world, two, since)) == {0}
    data = world.random.randbytes(8192)
    world.do(one, one.core.catch_up(two.node_id, data, world.moment()))
    world.run(1)
    assert [told.data for told in world.said(two, events.CaughtUp)] == [data]
    know(world, two, 0, 1)
    assert world.run(90, until=lambda: two.node_id in one.up() and one.node_id in two.up())


@pytest.mark.parametrize("vpn", [True, False])
def test_when_the_overlap_ends_a_member_that_is_behind_is_no_contact(vpn: bool) -> None:
    world, one, two = pair(vpn=vpn)
    know(world, one, 0, 1)
    world.run(OVERLAP - 1)
    assert one.core.contacts() == {two.node_id}
    generation = one.core.generation
    world.run(2)
    assert one.core.generation > generation
    assert one.core.contacts() == frozenset()
    since = len(world.sent)
    carry(world, one, two, b"not for the revoked")
    assert not epochs_of(world, one, since)
    assert not world.said(two, events.Delivered)
    assert one.core.catch_up(two.node_id, b"box", world.moment())
    know(world, two, 0, 1)
    assert world.run(70, until=lambda: one.core.contacts() == {two.node_id})


def bodies(world: World, host: Host, since: int) -> list[tuple[int, Kind, wire.Body]]:
    """Return what a host said in handshakes."""
    post = host.core._post
    found = []
    for source, target, data in world.sent[since:]:
        if source.host == host.address:
            letter = post.read(data, target, world.moment())
            if letter is not None and isinstance(letter.payload, Signed):
                body = decode_body(letter.kind, letter.payload.body)
                found.append((letter.epoch, letter.kind, body))
    return found


def test_in_an_old_epoch_a_handshake_tells_nothing_of_other_places() -> None:
    world, one, two = pair()
    world.feed(one, events.LocalAddresses((one.address, "172.20.0.9")))
    world.run(5)
    since = len(world.sent)
    know(world, one, 0, 1)
    world.restart(two)
    world.run(5)
    found = bodies(world, one, since)
    old = [body for epoch, kind, body in found if epoch == 0 and kind is not Kind.DONE]
    new = [body for epoch, kind, body in found if epoch == 1]
    assert old
    assert new
    assert not any(body.candidates for body in old)
    assert all(body.candidates for body in new)


def test_a_lead_under_an_old_epochs_name_is_followed_in_that_epoch() -> None:
    world = World()
    one, two = world.add(make_identity("one")), world.add(make_identity("two"))
    know(world, one, 0, 1)
    place = (Endpoint(two.address, PORT),)
    world.feed(one, events.Discovered("mdns:old", place, epoch=0))
    world.feed(one, events.Discovered("mdns:unknown", (Endpoint("192.168.1.55", PORT),), epoch=7))
    world.run(3)
    assert two.node_id in one.core.peers
    assert epochs_of(world, one, 0)[:2] == [0, 1]


def test_a_message_resealed_in_another_epoch_is_not_the_senders() -> None:
    world, one, two = pair(vpn=False)
    know(world, one, 0, 1)
    session = two.core._courier.sessions.latest(one.node_id)
    assert session is not None
    mine = session.seal(Kind.GOSSIP, two.node_id, 0, b"x")
    message = wire.encode_message(Kind.GOSSIP, mine)
    place = Endpoint(one.address, PORT)
    for action in one.core._post.outside(message, place, 1, world.moment()):
        assert isinstance(action, events.Send)
        world.deliver(Endpoint(two.address, PORT), place, action.data)
    world.run(1)
    assert not world.said(one, events.Delivered)
    assert one.core.peers[two.node_id].epoch == 0


def test_a_handshake_resealed_in_another_epoch_is_refused() -> None:
    world, one, two = pair()
    know(world, one, 0, 1)
    (sent,) = two.core._handshakes.initiate(Endpoint("192.168.1.44", PORT), world.moment(), 0)
    place = Endpoint(one.address, PORT)
    for action in one.core._post.outside(sent.message, place, 1, world.moment()):  # type: ignore[union-attr]
        assert isinstance(action, events.Send)
        world.deliver(Endpoint(two.address, PORT), place, action.data)
    world.run(1)
    assert "replayed" in one.causes()


def test_a_secret_that_turns_out_to_be_another_one_is_unlearned() -> None:
    world, one, two = pair(vpn=False)
    know(world, one, 0, 1)
    know(world, two, 0, 1)
    world.run(5)
    assert one.core.peers[two.node_id].epoch == 1
    other = {0: SECRETS[0], 1: b"\x77" * 32}
    one.core.set_secrets(other, 1, world.moment().unix)
    assert one.core.peers[two.node_id].epoch == 0
    two.core.set_secrets(other, 1, world.moment().unix)
    world.run(5)
    assert one.core.peers[two.node_id].epoch == 1


def test_many_peers_are_greeted_a_few_at_a_time() -> None:
    world = World(vpn=False)
    one = world.add(make_identity("one"))
    others = [world.add(make_identity("other")) for _ in range(20)]
    for other in others:
        world.introduce(other, one)
    assert world.run(20, until=lambda: len(one.up()) == 20)
    since = len(world.sent)
    know(world, one, 0, 1)
    at_once = len([1 for sender, _, _ in world.sent[since:] if sender.host == one.address])
    assert at_once == 16
    for other in others:
        know(world, other, 0, 1)
    world.run(3)
    assert {peer.epoch for peer in one.core.peers.values()} == {1}


# The keyring


def test_a_keyring_keeps_the_latest_epochs_up_to_the_current_one() -> None:
    keyring = Keyring(Seed(OTP_SEED, 0))
    assert keyring.replace(SECRETS, 6, UNIX) == {3, 4, 5, 6}
    assert [seed.epoch for seed in keyring.seeds()] == [6, 5, 4, 3]
    assert len(keyring.seeds()) == EPOCHS_MAX
    assert keyring.replace({**SECRETS, 5: b"\x99" * 32}, 6, UNIX) == {5}
    with pytest.raises(ValueError, match="no secret of epoch 7"):
        keyring.replace({1: SECRETS[1]}, 7, UNIX)
    assert SECRETS[6].hex() not in repr(keyring.seeds())


def test_the_epoch_before_is_announced_and_read_during_the_overlap() -> None:
    keyring = Keyring(Seed(OTP_SEED, 0))
    keyring.replace({4: SECRETS[4], 5: SECRETS[5], 6: SECRETS[6]}, 6, UNIX)
    assert [seed.epoch for seed in keyring.announced(UNIX + 1)] == [6, 5]
    assert keyring.overlap_ends_in(UNIX + 1) == pytest.approx(OVERLAP - 1)
    assert [seed.epoch for seed in keyring.announced(UNIX + OVERLAP)] == [6]
    assert keyring.overlap_ends_in(UNIX + OVERLAP) is None
    assert keyring.reading(5, UNIX + OVERLAP) is Reading.CATCH_UP
    assert keyring.reading(4, UNIX) is Reading.CATCH_UP
    assert keyring.reading(3, UNIX) is Reading.NOTHING
    assert keyring.reading(6, float("inf")) is Reading.ALL


def test_what_is_sealed_in_an_epoch_is_opened_as_of_that_epoch() -> None:
    keyring = Keyring(Seed(OTP_SEED, 0))
    keyring.replace(SECRETS, 3, UNIX)
    sealer = Sealer(keyring)
    for epoch in range(4):
        opened = sealer.unseal(sealer.seal(bytes(64), UNIX, epoch=epoch), UNIX)
        assert opened is not None
        assert (opened.epoch, opened.timeless) == (epoch, False)
        opened = sealer.unseal(sealer.seal_timeless(bytes(64), epoch=epoch), 0.0)
        assert opened is not None
        assert (opened.epoch, opened.timeless) == (epoch, True)
    with pytest.raises(KeyError):
        sealer.seal(bytes(64), UNIX, epoch=4)
