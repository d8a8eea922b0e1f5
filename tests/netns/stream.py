"""One TCP stream, and pings, between two namespaces: how much and how fast."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import closing

from tests.netns.lab import LabError, run
from tests.netns.pinger import inside

_CHUNK = 1 << 17
_TIME = re.compile(r"time=([\d.]+) ms")


def throughput(sender: str, receiver: str, address: str, seconds: float) -> float:
    """Return the bits per second that one stream brought to ``address`` in a namespace."""
    with inside(receiver):
        listener = socket.create_server((address, 0))
    with inside(sender):
        out = socket.socket()
    with closing(listener), closing(out):
        listener.settimeout(10)
        out.settimeout(10)
        out.connect(listener.getsockname())
        taken, _ = listener.accept()
        got: list[tuple[int, float]] = []
        reader = threading.Thread(target=lambda: got.append(_drain(taken)))
        reader.start()
        block = bytes(_CHUNK)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            out.sendall(block)
        out.shutdown(socket.SHUT_WR)
        reader.join()
    if not got:
        raise LabError(f"the stream from {sender} to {address} broke off")
    received, took = got[0]
    return received * 8 / took


def _drain(taken: socket.socket) -> tuple[int, float]:
    """Return how many bytes came until the end, and the seconds since the first of them."""
    taken.settimeout(10)
    block = bytearray(_CHUNK)
    with closing(taken):
        received = taken.recv_into(block)
        begun = time.monotonic()
        while count := taken.recv_into(block):
            received += count
        return received, time.monotonic() - begun


def round_trips(sender: str, address: str, count: int) -> list[float]:
    """Return the milliseconds of ``count`` pings, 5 ms apart."""
    words = ("ping", "-n", "-c", str(count), "-i", "0.005", "-W", "1", address)
    found = [float(one) for one in _TIME.findall(run("ip", "netns", "exec", sender, *words))]
    if len(found) < count * 0.99:
        raise LabError(f"{len(found)} of {count} pings from {sender} to {address} came back")
    return found
