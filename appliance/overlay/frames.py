"""Messages in datagrams: padding, so that lengths tell little, and parts for the long ones.

A certificate with many labels does not fit one datagram of 1180 bytes, and IP fragments do not pass
every network. Layout: docs/wire-format.md, "Frame".
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from appliance.overlay.errors import WireError
from appliance.overlay.seal import PLAINTEXT_MAX

FRAME_VERSION = 1
PARTS_MAX = 8
PADDED_TO = 64
PENDING_MAX = 128
PENDING_PER_SOURCE = 8
PENDING_SECONDS = 10.0
_HEADER = struct.Struct(">BB8sH")
PART_MAX = PLAINTEXT_MAX - _HEADER.size
MESSAGE_MAX = PARTS_MAX * PART_MAX


def split(message: bytes, random: Callable[[int], bytes]) -> tuple[bytes, ...]:
    """Return the plaintexts of the datagrams that carry a message of 1 to MESSAGE_MAX bytes."""
    if not 0 < len(message) <= MESSAGE_MAX:
        raise ValueError(f"a message of {len(message)} bytes cannot be sent")
    parts = [message[at : at + PART_MAX] for at in range(0, len(message), PART_MAX)]
    identifier = random(8)
    frames = []
    for index, part in enumerate(parts):
        place = (len(parts) - 1) << 4 | index
        frame = _HEADER.pack(FRAME_VERSION, place, identifier, len(part)) + part
        frames.append(frame + bytes(-len(frame) % PADDED_TO))
    return tuple(frames)


@dataclass(frozen=True, slots=True)
class Frame:
    """One part of a message."""

    identifier: bytes
    count: int
    index: int
    part: bytes


def read_frame(plaintext: bytes) -> Frame:
    """Return the frame that a datagram held. Raises WireError."""
    if not plaintext:
        raise WireError("malformed", "an empty frame")
    if plaintext[0] != FRAME_VERSION:
        raise WireError("unknown-version", f"a frame of version {plaintext[0]}")
    if len(plaintext) < _HEADER.size or len(plaintext) % PADDED_TO:
        raise WireError("malformed", "a frame has a wrong size")
    _, place, identifier, length = _HEADER.unpack_from(plaintext)
    count, index = (place >> 4) + 1, place & 15
    part = plaintext[_HEADER.size : _HEADER.size + length]
    padding = plaintext[_HEADER.size + length :]
    whole = count == index + 1 or length == PART_MAX
    if (
        count > PARTS_MAX
        or index >= count
        or not whole
        or not 0 < len(part) == length
        or len(padding) >= PADDED_TO
        or any(padding)
    ):
        raise WireError("malformed", "a frame contradicts itself")
    return Frame(identifier, count, index, part)


@dataclass(slots=True)
class _Pending:
    expires: float
    count: int
    parts: dict[int, bytes] = field(default_factory=dict)


class Reassembler:
    """Puts messages of several parts together; what it holds is bounded in number and time."""

    def __init__(self) -> None:
        self._pending: OrderedDict[tuple[Hashable, bytes], _Pending] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, source: Hashable, plaintext: bytes, now: float) -> bytes | None:
        """Return the message that this part completes, else None. Raises WireError.

        Parts of different sources never make a message.
        """
        frame = read_frame(plaintext)
        if frame.count == 1:
            return frame.part
        key = source, frame.identifier
        pending = self._pending.get(key)
        if pending is None:
            self._make_room(source, now)
            pending = self._pending[key] = _Pending(now + PENDING_SECONDS, frame.count)
        if pending.count != frame.count:
            raise WireError("malformed", "the parts of a message disagree on their number")
        pending.parts[frame.index] = frame.part
        if len(pending.parts) < pending.count:
            return None
        del self._pending[key]
        return b"".join(pending.parts[index] for index in range(pending.count))

    def _make_room(self, source: Hashable, now: float) -> None:
        for key in [key for key, one in self._pending.items() if one.expires <= now]:
            del self._pending[key]
        of_source = [key for key in self._pending if key[0] == source]
        if len(of_source) >= PENDING_PER_SOURCE:
            del self._pending[of_source[0]]
        elif len(self._pending) >= PENDING_MAX:
            self._pending.popitem(last=False)
