"""ICMP echoes between many namespaces, all from this one process.

A socket belongs for ever to the namespace in which it was made, so one thread can hold sockets of
all of them: no process per ping or per namespace, and one clock for all.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from appliance.cni import namespaces

_SOL_RAW, _ICMP_FILTER = 255, 1
_ECHO, _REPLY = 8, 0
_PACKET = struct.Struct(">BBHHHIId")  # ICMP header, our mark, which pair, when
_MARK = 0x534B4C42
_BUFFER = 1 << 20


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread be in a network namespace (of iproute2's)."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    try:
        namespaces.enter(there)
        yield
    finally:
        namespaces.enter(home)
        os.close(home)
        os.close(there)


@dataclass(slots=True)
class Route:
    """Pings from one namespace to one address: when the first and the last came through."""

    namespace: str
    address: str
    sent: int = 0
    got: int = 0
    first: float | None = None
    last: float | None = None
    rtts: list[float] = field(default_factory=list)


class Pinger:
    """Sockets in namespaces; times are monotonic seconds of when an answered ping *arrived*."""

    def __init__(self, namespaces: Iterable[str]) -> None:
        self._sockets: dict[str, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        for namespace in namespaces:
            with inside(namespace):
                made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            made.settimeout(0)
            made.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("I", ~(1 << _REPLY) & 0xFFFFFFFF))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._sockets[namespace] = made
            self._selector.register(made, selectors.EVENT_READ)
        self.paths: list[Route] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for one in self._sockets.values():
            one.close()

    def add(self, namespace: str, address: str) -> Route:
        """Add a path to be pinged."""
        path = Route(namespace, address)
        self.paths.append(path)
        return path

    def send(self, numbers: Iterable[int]) -> None:
        """Ping these paths once."""
        for number in numbers:
            path = self.paths[number]
            packet = _echo(number, time.monotonic())
            path.sent += 1
            try:
                self._sockets[path.namespace].sendto(packet, (path.address, 0))
            except OSError:
                continue  # no route yet, or no key for it: as good as lost

    def receive(self, seconds: float) -> None:
        """Take answers for a while."""
        until = time.monotonic() + seconds
        while True:
            ready = self._selector.select(max(until - time.monotonic(), 0))
            for key, _ in ready:
                self._drain(key.fileobj)  # type: ignore[arg-type]
            if time.monotonic() >= until:
                return

    def settle(self, path: Route, seconds: float) -> None:
        """Take answers until every ping of a path has one, for so long at most."""
        deadline = time.monotonic() + seconds
        while path.got < path.sent and time.monotonic() < deadline:
            self.receive(0.05)

    def _drain(self, one: socket.socket) -> None:
        while True:
            try:
                packet = one.recv(2048)
            except OSError:
                return
            start = (packet[0] & 15) * 4
            if len(packet) < start + _PACKET.size:
                continue
            kind, _, _, _, _, mark, number, sent = _PACKET.unpack_from(packet, start)
            if kind != _REPLY or mark != _MARK or number >= len(self.paths):
                continue
            path, now = self.paths[number], time.monotonic()
            path.got += 1
            path.rtts.append(now - sent)
            path.first = path.first or now
            path.last = now

    def until_all(self, seconds: float, *, every: float = 0.1) -> list[Route]:
        """Ping all paths until each has answered; return those that did not in time."""
        deadline = time.monotonic() + seconds
        while missing := [at for at, path in enumerate(self.paths) if path.first is None]:
            if time.monotonic() > deadline:
                return [self.paths[at] for at in missing]
            self.send(missing)
            self.receive(every)
        return []


class Stream:
    """Pings all paths of a pinger over and over, in a thread of its own."""

    def __init__(self, pinger: Pinger, *, every: float = 0.02) -> None:
        self._pinger = pinger
        self._every = every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def _run(self) -> None:
        numbers = range(len(self._pinger.paths))
        due = time.monotonic()
        while not self._end.is_set():
            self._pinger.send(numbers)
            due += self._every
            self._pinger.receive(max(due - time.monotonic(), 0))


def all_pairs(addresses: Mapping[str, str], *, seconds: float) -> Sequence[Route]:
    """Ping between all namespaces (namespace -> its address); return the pairs that did not."""
    with Pinger(addresses) as pinger:
        for namespace in addresses:
            for other, address in addresses.items():
                if other != namespace:
                    pinger.add(namespace, address)
        return pinger.until_all(seconds)


def _echo(number: int, now: float) -> bytes:
    blank = _PACKET.pack(_ECHO, 0, 0, 0, 0, _MARK, number, now)
    total = sum(struct.unpack(f">{len(blank) // 2}H", blank))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return _PACKET.pack(_ECHO, 0, ~total & 0xFFFF, 0, 0, _MARK, number, now)
