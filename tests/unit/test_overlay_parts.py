"""Address rules, the BPF filter, WireGuard's answers, leads, refusals, uplinks."""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
import socket
import struct
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.overlay import addresses, bpf
from appliance.overlay.brain import refused_ranges
from appliance.overlay.clock import Now
from appliance.overlay.control_socket import attach_filter
from appliance.overlay.endpoint import Endpoint, is_candidate
from appliance.overlay.leads import LEADS_MAX, RETRY_SECONDS, Leads
from appliance.overlay.links import is_uplink
from appliance.overlay.peers import Peer, peer_from_record
from appliance.overlay.refusals import QUIET_SECONDS, Refusals
from appliance.overlay.wireguard import Device, PeerState, PeerTable
from appliance.overlay.wireguard_userspace import read_peers
from provisioning import codec
from provisioning.keys import public_key
from provisioning.settings import Settings
from tests.unit.overlay_world import make_identity, make_network

NETWORK = make_network()
NODE = b"\x01" * 16
PORT = 51820
PLACE = Endpoint("192.0.2.1", PORT)


# Addresses


def test_vectors_of_addresses() -> None:
    network_id = make_network().network_id
    assert str(addresses.ula_prefix(network_id)) == "fd2c:3689:8ff::/48"
    assert (
        str(addresses.ula_address(network_id, b"\x05" * 32))
        == "fd2c:3689:8ff:f439:554:75fb:90c:185d"
    )
    wide = ipaddress.IPv4Network("10.10.0.0/16")
    assert [str(addresses.claimed_address(NODE, one, wide)) for one in (0, 1)] == [
        "10.10.216.167",
        "10.10.153.93",
    ]


@given(st.binary(min_size=16, max_size=16), st.sampled_from(["10.9.0.0/24", "10.8.0.0/22"]))
@settings(max_examples=20)
def test_attempts_visit_every_address_once(node_id: bytes, text: str) -> None:
    wide = ipaddress.IPv4Network(text)
    size = addresses.usable(wide)
    seen = {addresses.claimed_address(node_id, one, wide) for one in range(size)}
    assert len(seen) == size
    hosts = list(wide.hosts())
    assert seen == set(hosts[1:])  # without the gateway's usual place


# What is remembered of a peer


def known_peer() -> Peer:
    identity = make_identity("two")
    places = Endpoint("192.0.2.1", PORT), Endpoint("2001:db8::1", PORT)
    ipv6 = addresses.ula_address(NETWORK.network_id, identity.member().node_key)
    return Peer(identity.member(), identity.certificate, ipv6, None, places[1], places)


def test_a_peer_is_remembered_with_its_places_and_without_an_ipv4_address() -> None:
    peer = known_peer()
    peer.ipv4 = ipaddress.IPv4Address("10.10.0.7")
    found = peer_from_record(peer.record(), NETWORK)
    assert found is not None
    assert (found.node_id, found.ipv6, found.ipv4) == (peer.node_id, peer.ipv6, None)
    assert found.endpoint == Endpoint("2001:db8::1", PORT)
    assert set(found.candidates) == set(peer.candidates)
    other = dataclasses.replace(NETWORK, root_key=public_key(b"\x09" * 32))
    assert peer_from_record(peer.record(), other) is None


@pytest.mark.parametrize(
    "record",
    [
        lambda certificate: (2, certificate, ()),
        lambda certificate: (1, certificate),
        lambda certificate: (1, certificate, (), ()),
        lambda certificate: (1, certificate, 0, True, ()),
        lambda certificate: (1, certificate[:-1], ()),
        lambda certificate: (1, certificate, ((b"\x01" * 5, PORT),)),
        lambda certificate: (1, certificate, ((b"\x01" * 4, 0),)),
    ],
)
def test_a_record_of_any_other_form_is_passed_over(record: Callable[[bytes], object]) -> None:
    certificate = known_peer().certificate
    assert peer_from_record(codec.encode((1, certificate, ())), NETWORK) is not None
    assert peer_from_record(codec.encode(record(certificate)), NETWORK) is None


@given(st.binary(max_size=200))
def test_damaged_records_are_passed_over(data: bytes) -> None:
    assert peer_from_record(data, NETWORK) is None


# The filter, by a small interpreter of classic BPF (linux/filter.h)


def interpret(program: tuple[bpf.Instruction, ...], packet: bytes) -> int:
    accumulator = index = place = 0
    while True:
        one = program[place]
        place += 1
        try:
            if one.code == 0xB1:
                index = 4 * (packet[one.k] & 15)
            elif one.code == 0x01:
                index = one.k
            elif one.code == 0x48:
                (accumulator,) = struct.unpack_from(">H", packet, index + one.k)
            elif one.code == 0x40:
                (accumulator,) = struct.unpack_from(">I", packet, index + one.k)
            elif one.code == 0x06:
                return one.k
            else:
                compare = {
                    0x15: accumulator == one.k,
                    0x25: accumulator > one.k,
                    0x35: accumulator >= one.k,
                }
                place += one.jt if compare[one.code] else one.jf
        except (IndexError, struct.error):
            return 0


def udp(payload: bytes, *, port: int = PORT, options: int = 0, ipv6: bool = False) -> bytes:
    header = struct.pack(">HHHH", 4000, port, 8 + len(payload), 0)
    start = b"" if ipv6 else bytes([0x45 + options]) + bytes(19 + 4 * options)
    return start + header + payload


@pytest.mark.parametrize("ipv6", [False, True])
def test_the_filter_passes_only_what_may_be_ours(ipv6: bool) -> None:
    program = bpf.control_filter(PORT, ipv6=ipv6)
    ours = b"\x99" * 92
    assert interpret(program, udp(ours, ipv6=ipv6))
    assert interpret(program, udp(b"\x99" * 1180, ipv6=ipv6))
    assert not interpret(program, udp(b"\x99" * 1181, ipv6=ipv6))
    assert not interpret(program, udp(b"\x99" * 91, ipv6=ipv6))
    assert not interpret(program, udp(ours, port=PORT + 1, ipv6=ipv6))
    for kind in range(1, 5):
        assert not interpret(program, udp(bytes([kind, 0, 0, 0]) + ours, ipv6=ipv6))
    assert interpret(program, udp(bytes([5, 0, 0, 0]) + ours, ipv6=ipv6))
    assert interpret(program, udp(bytes([1, 0, 0, 1]) + ours, ipv6=ipv6))
    for length in range(12):
        assert not interpret(program, udp(ours, ipv6=ipv6)[:length])


def test_the_filter_steps_over_ip_options() -> None:
    program = bpf.control_filter(PORT, ipv6=False)
    assert interpret(program, udp(b"\x99" * 92, options=3))
    assert not interpret(program, udp(b"\x01\0\0\0" + b"\x99" * 92, options=3))


def test_the_kernel_takes_the_filter_and_agrees() -> None:
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        attach_filter(receiver, bpf.assemble(bpf.control_filter(PORT, ipv6=False)))
        receiver.settimeout(0)
        for packet in (
            udp(bytes([1, 0, 0, 0]) + b"\x99" * 92),
            udp(b"\x99" * 92, port=1),
            udp(b"\x99" * 10),
            b"",
            udp(b"\x98" * 92, options=2),
        ):
            sender.send(packet)
        assert receiver.recv(2048) == udp(b"\x98" * 92, options=2)
        with pytest.raises(BlockingIOError):
            receiver.recv(2048)


# WireGuard


ANSWER = """private_key=00
listen_port=51820
public_key={key}
endpoint=[2001:db8::1]:51820
last_handshake_time_sec=1795000000
last_handshake_time_nsec=500000000
tx_bytes=148
rx_bytes=92
allowed_ip=10.10.0.5/32
allowed_ip=fd00::5/128
public_key={other}
last_handshake_time_sec=0
protocol_version=1
errno=0
"""


def test_peers_are_read_from_the_uapi() -> None:
    one, other = b"\x0a" * 32, b"\x0b" * 32
    peers = read_peers(ANSWER.format(key=one.hex(), other=other.hex()))
    allowed = frozenset({"10.10.0.5/32", "fd00::5/128"})
    assert peers[one] == PeerState(Endpoint("2001:db8::1", 51820), 1795000000.5, 92, 148, allowed)
    assert peers[other] == PeerState(None, None, 0, 0, frozenset())


@given(st.text(max_size=300))
def test_any_uapi_answer_is_read(text: str) -> None:
    read_peers(text)


class FakeWireGuard:
    """Notes what is written to it."""

    mode = "userspace"

    def __init__(self, peers: Mapping[bytes, PeerState]) -> None:
        self.has = dict(peers)
        self.calls: list[tuple[object, ...]] = []

    def ensure(self, device: Device) -> bool:
        raise NotImplementedError(device)

    def set_peer(
        self, key: bytes, endpoint: Endpoint | None, allowed: tuple[str, ...], *, replace: bool
    ) -> None:
        self.calls.append((key, endpoint, allowed, replace))

    def remove_peer(self, key: bytes) -> None:
        self.calls.append((key,))

    def peers(self) -> Mapping[bytes, PeerState]:
        return self.has

    def close(self) -> None:
        raise NotImplementedError


def test_a_running_peer_is_written_to_only_where_it_differs() -> None:
    key, allowed = b"\x0a" * 32, ("10.10.0.5/32", "fd00::5/128")
    fake = FakeWireGuard({key: PeerState(PLACE, None, 0, 0, frozenset(allowed))})
    table = PeerTable(fake)
    table.read()
    assert not table.set(key, PLACE, allowed)
    assert not table.set(key, None, allowed)
    assert fake.calls == []
    moved = Endpoint("192.0.2.2", PORT)
    assert table.set(key, moved, allowed)
    assert table.set(key, moved, (*allowed, "10.244.1.0/24"))
    assert table.set(key, moved, allowed[1:])
    assert fake.calls == [
        (key, moved, (), False),
        (key, None, ("10.244.1.0/24",), False),
        (key, None, allowed[1:], True),
    ]


def test_an_address_that_another_peer_got_is_given_back_when_asked() -> None:
    one, other = b"\x0a" * 32, b"\x0b" * 32
    table = PeerTable(FakeWireGuard({}))
    assert table.set(one, PLACE, ("10.10.0.5/32",))
    assert table.set(other, PLACE, ("10.10.0.5/32",))
    assert table.set(one, PLACE, ("10.10.0.5/32",))


# Leads and refusals


def test_a_lead_is_followed_ever_more_seldom_and_rests_while_its_node_is_up() -> None:
    leads, now = Leads(), 0.0
    times: list[float] = []
    leads.set("mdns:x", (PLACE,), 0.0)
    while len(times) < 8:
        at = leads.next_timer(frozenset())
        assert at is not None
        now = at
        assert leads.take_due(now, frozenset()) == ((PLACE, None),)
        times.append(now)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps == [*RETRY_SECONDS, RETRY_SECONDS[-1]]
    leads.bind(PLACE, NODE)
    assert leads.next_timer(frozenset({NODE})) is None
    leads.hasten(NODE, now)
    assert leads.take_due(now, frozenset()) == ((PLACE, None),)


def test_leads_are_bounded() -> None:
    leads = Leads()
    for number in range(LEADS_MAX + 50):
        leads.set(f"mdns:{number}", (PLACE,), 0.0)
    assert len(leads) == LEADS_MAX


def test_a_refusal_is_said_once_and_then_summed_up() -> None:
    refusals = Refusals()
    assert refusals.note("unsealed", "noise", PLACE, Now(0, 0))
    for _ in range(9):
        assert refusals.note("unsealed", "noise", PLACE, Now(1, 1)) is None
    line = refusals.note("unsealed", "noise", PLACE, Now(QUIET_SECONDS + 1, 0))
    assert line is not None
    assert "9 more" in line.message
    assert [one.count for one in refusals] == [11]
    assert refusals.note("tampered", "bad", PLACE, Now(QUIET_SECONDS + 1, 0))


# What a path may lead to


def test_no_path_leads_into_the_ranges_of_overlay_pods_and_services() -> None:
    network = dataclasses.replace(
        make_network(), settings=Settings(pod_cidr="10.50.0.0/16", service_cidr="10.60.0.0/16")
    )
    refused = refused_ranges(make_identity(network=network))
    inside = str(next(one for one in refused if one.version == 6)[9])
    for host in ("10.10.1.1", "10.50.1.1", "10.60.0.1", inside):
        assert not is_candidate(host, own=(), refused=refused)
    for host in ("10.244.1.1", "10.96.0.1", "192.0.2.1", "2001:db8::1"):
        assert is_candidate(host, own=(), refused=refused)


# Uplinks


@pytest.mark.parametrize("name", ["eth0", "enp3s0", "end0", "wlan0", "wlp2s0", "bond0"])
def test_wired_and_wireless_interfaces_are_uplinks(name: str) -> None:
    assert is_uplink(name, None, own="skerry0")


@pytest.mark.parametrize(
    "name", ["lo", "skerry0", "veth12", "cni0", "docker0", "br-1", "wg0", "tun0", "flannel.1", "x"]
)
def test_tunnels_and_containers_are_not(name: str) -> None:
    assert not is_uplink(name, None, own="skerry0")


def test_configured_uplinks_count_alone_and_never_our_own() -> None:
    assert is_uplink("docker0", ("docker*",), own="skerry0")
    assert not is_uplink("eth0", ("docker*",), own="skerry0")
    assert not is_uplink("eth0", ("*",), own="eth0")
    # Behind it are pods, whatever the patterns say.
    assert not is_uplink("skerry-pods", ("*",), own="skerry0")
