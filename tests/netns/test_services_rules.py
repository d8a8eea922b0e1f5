"""While the rules of services change, no packet slips past them."""

from __future__ import annotations

import ctypes
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

import pytest

from appliance import programs
from appliance.services import kernel
from appliance.services.plan import Way
from tests.netns.flooder import flood
from tests.netns.lab import ROOT, Lab, Node
from tests.netns.pinger import inside

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]
CHANGES, CHANGES_MIN = 2000, 100
SECONDS_MAX = 40.0  # A busy machine does fewer of them.
SERVICE = "198.19.1.1"
OTHER = "198.51.100.1"
PORT, GUARDED = 7000, 7001
_JSON = 1 << 4


class Nft:
    """The library that the program nft is: a change takes 2 ms instead of 50 on a busy machine."""

    def __init__(self, node: Node) -> None:
        self._library = ctypes.CDLL("libnftables.so.1")
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        self._library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        # It speaks to the network namespace in which it was made, wherever it is called.
        with inside(node.namespace):
            self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        self._library.nft_ctx_buffer_output(self._context)

    def run(self, program: str, words: Sequence[str], text: str = "", *, doing: str) -> bytes:
        """Stand in for `programs.run`."""
        assert program == "nft", doing
        self._library.nft_ctx_output_set_flags(self._context, 0 if text else _JSON)
        command = text or " ".join(words).removeprefix("-j ")
        assert self._library.nft_run_cmd_from_buffer(self._context, command.encode()) == 0, command
        return bytes(self._library.nft_ctx_get_output_buffer(self._context))


def _ear(node: Node, port: int) -> socket.socket:
    with inside(node.namespace):
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.bind(("", port))
    ear.settimeout(0)
    return ear


def _heard(ear: socket.socket) -> int:
    count = 0
    while True:
        try:
            ear.recv(100)
        except BlockingIOError:
            return count
        count += 1


def _ask(node: Node, own: str, ended: threading.Event) -> None:
    """Begin connection after connection to a port that leads elsewhere, and to a guarded one."""
    with inside(node.namespace):
        while not ended.is_set():
            for _ in range(50):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
                    channel.sendto(b"new", (own, PORT))
            time.sleep(0.001)


def _pour(node: Node, host: str, ended: threading.Event) -> None:
    with inside(node.namespace):
        while not ended.is_set():
            flood(host, GUARDED, 20000, 0.2, [b"stranger"] * 64)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def test_no_packet_slips_past_the_rules_while_they_change(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither through a node that forwards for our sake alone, nor to what else listens there."""
    gate, member, behind = lab.crowd(3)
    own = gate.address
    forwarding = ("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    subprocess.run(gate.command(*forwarding), check=True)
    # A stranger on the LAN has a route to others by way of the node.
    member.ip("route", "add", f"{behind.address}/32", "via", own)
    monkeypatch.setattr(programs, "run", Nft(gate).run)

    def ways(number: int) -> tuple[Way, ...]:
        targets = ((behind.address, 9000), (behind.address, 9001))[: 1 + number % 2]
        here = Way(inward=True, address=own, protocol="udp", port=PORT, targets=targets)
        there = Way(inward=False, address=SERVICE, protocol="udp", port=PORT, targets=targets)
        return (there, here)

    def change(number: int) -> None:
        kernel.apply(ways(number), "eth0", own, guarded=True)
        kernel.tidy(ways(number))

    ended = threading.Event()
    # What listens at the exposed port of the node is not what is exposed.
    with _ear(gate, PORT) as misled, _ear(behind, GUARDED) as passed, _ear(behind, 9000) as led:
        change(0)
        threads = [
            threading.Thread(target=partial(_ask, member, own, ended)),
            threading.Thread(target=partial(_pour, member, behind.address, ended)),
        ]
        try:
            for thread in threads:
                thread.start()
            begun, number = time.monotonic(), 0
            while number < CHANGES and time.monotonic() < begun + SECONDS_MAX:
                number += 1
                change(number)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert number >= CHANGES_MIN
        assert _heard(led) > 0
        assert (_heard(misled), _heard(passed)) == (0, 0)


def test_an_images_firewall_keeps_addresses_of_services_from_the_uplink(lab: Lab) -> None:
    """A node that does not reach a service would ask whoever is there, and so would its pods."""
    node, router, pod = lab.crowd(3)
    for address in (SERVICE, OTHER):
        router.ip("addr", "add", f"{address}/32", "dev", "lo")
    forwarding = ("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    subprocess.run(node.command(*forwarding), check=True)
    for one, via in ((node, router), (pod, node)):
        one.ip("route", "add", "default", "via", via.address)

    def arrived(ear: socket.socket) -> list[bytes]:
        """Return what the router got of both, each of whose last word is not for a service."""
        for one in (node, pod):
            with inside(one.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
                with suppress(OSError):
                    channel.sendto(b"who?", (SERVICE, PORT))
                channel.sendto(b"last", (OTHER, PORT))
        heard = [ear.recv(100)]
        while heard.count(b"last") < 2:
            heard.append(ear.recv(100))
        return sorted(heard)

    with _ear(router, PORT) as ear:
        ear.settimeout(20)
        assert arrived(ear) == [b"last"] * 2 + [b"who?"] * 2
        firewall = ROOT / "rootfs_overlay/usr/share/skerry/firewall.nft"
        subprocess.run(node.command("nft", "-f", str(firewall)), check=True)
        assert arrived(ear) == [b"last"] * 2
