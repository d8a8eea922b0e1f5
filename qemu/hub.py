"""A network switch in user space: the LAN between machines. ``python -m qemu.hub SOCKET``.

QEMU's stream netdevs connect to the unix socket; each frame is preceded by its length (32 bits, big
endian). Frames go where their destination was last seen, else everywhere. Nothing leaves the host:
there is no address, no DHCP and no way out. The shaper delays and drops.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

LONGEST_FRAME = 65550  # QEMU's virtio-net hands over up to 64 KiB with offloads
_LONGEST_BACKLOG = 1 << 20
_MOST_ADDRESSES = 4096


class StreamError(Exception):
    """A port sent something that is no frame: it is hung up."""


class FrameSplitter:
    """Cuts a port's byte stream into Ethernet frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, return the frames that they complete; raises :class:`StreamError`."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > LONGEST_FRAME:
                raise StreamError(f"a frame of {length} bytes")
            if len(self._buffer) < 4 + length:
                break
            frames.append(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]
        return frames


class Switch:
    """Which ports get a frame: a learning switch."""

    def __init__(self) -> None:
        self._ports: list[Hashable] = []
        self._where: dict[bytes, Hashable] = {}

    def plug(self, port: Hashable) -> None:
        """Add a port."""
        self._ports.append(port)

    def unplug(self, port: Hashable) -> None:
        """Remove a port and forget the addresses behind it."""
        self._ports.remove(port)
        self._where = {mac: at for mac, at in self._where.items() if at is not port}

    def forward(self, source: Hashable, frame: bytes) -> list[Hashable]:
        """Return the ports that this frame goes to; one shorter than a header goes nowhere."""
        if len(frame) < 14:
            return []
        destination, sender = frame[:6], frame[6:12]
        if not sender[0] & 1 and (sender in self._where or len(self._where) < _MOST_ADDRESSES):
            self._where[sender] = source
        target = None if destination[0] & 1 else self._where.get(destination)
        if target is not None:
            return [] if target is source else [target]
        return [port for port in self._ports if port is not source]


@dataclass(slots=True)
class Shaper:
    """Loss (0..1) and delay (seconds, plus up to ``jitter``), drawn from a seeded generator."""

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - no secret

    def fate(self) -> float | None:
        """Return the delay of the next frame, or None if it is lost."""
        if self.loss and self.random.random() < self.loss:
            return None
        return self.delay + (self.random.random() * self.jitter if self.jitter else 0.0)


class _Port(asyncio.Protocol):
    def __init__(self, switch: Switch, shaper: Shaper) -> None:
        self._switch = switch
        self._shaper = shaper
        self._splitter = FrameSplitter()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream socket's is
        self._transport = transport
        self._switch.plug(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._switch.unplug(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._splitter.feed(data)
        except StreamError:
            if self._transport:
                self._transport.abort()
            return
        loop = asyncio.get_running_loop()
        for frame in frames:
            for port in self._switch.forward(self, frame):
                assert isinstance(port, _Port)  # noqa: S101 - only ports are plugged
                wait = self._shaper.fate()
                if wait is None:
                    continue
                if wait > 0:
                    loop.call_later(wait, port.send, frame)
                else:
                    port.send(frame)

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire; a port that does not read loses frames, as on a real switch."""
        if self._transport and self._transport.get_write_buffer_size() < _LONGEST_BACKLOG:
            self._transport.write(len(frame).to_bytes(4, "big") + frame)


async def serve(path: Path, shaper: Shaper) -> None:
    """Switch frames until SIGTERM."""
    loop = asyncio.get_running_loop()
    switch = Switch()
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    server = await loop.create_unix_server(lambda: _Port(switch, shaper), str(path))
    async with server:
        await done.wait()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m qemu.hub", description="A LAN for machines.")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--loss", type=float, default=0.0, help="0..1")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds")
    given = parser.parse_args()
    shaper = Shaper(given.loss, given.delay, given.jitter)
    given.socket.unlink(missing_ok=True)
    asyncio.run(serve(given.socket, shaper))


if __name__ == "__main__":
    main()
