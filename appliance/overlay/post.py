"""From messages to sealed datagrams and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.overlay import events, wire
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import WireError
from appliance.overlay.frames import Reassembler, split
from appliance.overlay.seal import Sealer


@dataclass(frozen=True, slots=True)
class Letter:
    """A whole message that came in, and how it was sealed."""

    kind: wire.Kind
    payload: wire.Payload
    epoch: int
    timeless: bool


class Post:
    """Frames and seals what goes out, opens and puts together what comes in."""

    def __init__(self, sealer: Sealer, random: Callable[[int], bytes]) -> None:
        self.keyring = sealer.keyring
        self._sealer = sealer
        self._random = random
        self._parts = Reassembler()

    def outside(
        self, message: bytes, destination: Endpoint, epoch: int, now: Now
    ) -> list[events.Action]:
        """Return what sends a message to an endpoint; nothing in an epoch that is gone."""
        return [events.Send(one, destination) for one in self._sealed(message, epoch, now)]

    def inside(self, message: bytes, destination: str, epoch: int, now: Now) -> list[events.Action]:
        """Return what sends a message through the tunnel."""
        return [events.SendInside(one, destination) for one in self._sealed(message, epoch, now)]

    def timeless(self, message: bytes, epoch: int) -> bytes:
        """Return the datagram of a short message about the time. Raises KeyError."""
        (frame,) = split(message, self._random)
        return self._sealer.seal_timeless(frame, epoch=epoch)

    def read(self, data: bytes, source: Endpoint, now: Now) -> Letter | None:
        """Return the message that a datagram completes, None if more parts are to come.

        Raises WireError for what is not sealed with our secrets, or is wrong.
        """
        opened = self._sealer.unseal(data, now.unix)
        if opened is None:
            raise WireError(
                "unsealed",
                "not sealed with this network's secret: a node with another network's token, "
                "a clock that is more than an hour off, or noise",
            )
        origin = source, opened.epoch, opened.timeless
        message = self._parts.add(origin, opened.plaintext, now.mono)
        if message is None:
            return None
        kind, payload = wire.decode_message(message)
        return Letter(kind, payload, opened.epoch, opened.timeless)

    def _sealed(self, message: bytes, epoch: int, now: Now) -> list[bytes]:
        if epoch not in self.keyring:
            return []
        return [
            self._sealer.seal(frame, now.unix, epoch=epoch)
            for frame in split(message, self._random)
        ]
