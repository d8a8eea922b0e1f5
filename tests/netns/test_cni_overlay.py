"""Pods of two nodes: real supervisors, real CNI servers, and what is seen on the wire."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest

from appliance.cni import namespaces
from tests.netns.cni import CniLab
from tests.netns.cni_overlay import cluster_of, with_pods
from tests.netns.cni_traffic import traffic
from tests.netns.lab import PORT, Lab, Network, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

_ETH_P_ALL = 3
_ETHERNET, _IPV4, _UDP = 14, 20, 8
# WireGuard's transport message: type 4, a header of 16 bytes, a tag of 16; the inside is padded.
_TRANSPORT, _WIREGUARD, _PADDED_TO = 4, 32, 16
_PAYLOAD, _ICMP = 1000, 8


@contextmanager
def watched(namespace: str, interface: str, seen: list[bytes]) -> Iterator[None]:
    """Collect what passes a link."""
    opened = namespaces.open_namespace(f"/run/netns/{namespace}")
    try:
        ears = namespaces.inside(
            opened,
            lambda: socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL)
            ),
        )
        ears.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        namespaces.inside(opened, lambda: ears.bind((interface, _ETH_P_ALL)))
    finally:
        os.close(opened)
    with ears:
        yield
        time.sleep(0.2)
        while True:
            try:
                seen.append(ears.recv(65536))
            except BlockingIOError:
                return


def pings(packets: Sequence[bytes], ends: set[str]) -> list[bytes]:
    """Return the IPv4 ICMP packets between two addresses."""
    icmp = (
        one
        for one in packets
        if len(one) > _IPV4 and one[0] == 0x45 and one[9] == socket.IPPROTO_ICMP
    )
    return [
        one for one in icmp if {socket.inet_ntoa(one[12:16]), socket.inet_ntoa(one[16:20])} == ends
    ]


def test_pods_of_two_nodes_reach_each_other_in_one_encapsulation() -> None:
    with Lab() as lab, CniLab() as cni:
        network = Network("home")
        one, two = lab.node(), lab.node()
        for node in (one, two):
            node.start(network.token())
        wait_until(lambda: one.sees(two) and two.sees(one), 40, "they meet")
        here, there = with_pods(cni, one), with_pods(cni, two)
        pod, other = cni.pod(), cni.pod()
        mine, theirs = (
            node.call("ADD", each).addresses for node, each in ((here, pod), (there, other))
        )
        for address in theirs:
            wait_until(partial(pod.reaches, address), 20, f"{address} answers")
        # A pod and the other node, by the address that it has for all members.
        assert pod.reaches(two.overlay_addresses()[0])
        # A whole packet passes, and nothing larger.
        mtu = cluster_of(one)["mtu"]
        whole = str(mtu - _IPV4 - _ICMP)
        assert " 0% packet loss" in pod.ping(theirs[0], "-s", whole, "-M", "do")
        inside: list[bytes] = []
        wire: list[bytes] = []
        with (
            watched(one.namespace, one.interface, inside),
            watched(one.namespace, "eth0", wire),
        ):
            said = pod.ping(theirs[0], "-c", "5", "-i", "0.2", "-s", str(_PAYLOAD))
            assert " 0% packet loss" in said
        # In the tunnel: the pods' own packets, under their own addresses.
        packet = _IPV4 + _ICMP + _PAYLOAD
        assert [len(each) for each in pings(inside, {mine[0], theirs[0]})] == [packet] * 10
        # On the wire: the same number, in WireGuard, and not a byte more than that takes.
        padded = -(-packet // _PADDED_TO) * _PADDED_TO
        size = _ETHERNET + _IPV4 + _UDP + _WIREGUARD + padded
        assert [len(each) for each in wire if is_transport(each)].count(size) == 10
        # Whatever else there is on the wire is not a pod's.
        plain = [each[_ETHERNET:] for each in wire]
        assert not pings(plain, {mine[0], theirs[0]})
        # Neither the CNI server nor the supervisor is in the way of packets.
        with traffic(pod, theirs[0]):
            here.end(signal.SIGKILL)
            one.kill()
            time.sleep(1)
            one.start()
            here.start()
            assert here.call("DEL", cni.pod()).status == 0


def is_transport(frame: bytes) -> bool:
    """Say whether a frame is WireGuard's data."""
    udp = frame[_ETHERNET + _IPV4 :]
    return (
        len(udp) > _UDP + _WIREGUARD
        and frame[_ETHERNET + 9] == socket.IPPROTO_UDP
        and struct.unpack_from(">H", udp, 2)[0] == PORT
        and udp[_UDP] == _TRANSPORT
    )
