"""``--via HOST[:PORT]``: a `visitor` on a plain UDP socket, as a `publisher.Publisher`."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence

from appliance.ledger.entry import read_entry
from appliance.ledger.state import Verdict
from appliance.operator.errors import PublishError
from appliance.operator.publisher import SELF, Fetched, Result
from appliance.operator.rootkey import RootKey
from appliance.operator.visitor import Visitor, parse_target
from appliance.overlay import events
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from provisioning.keys import id_text

TIMEOUT_SECONDS = 60.0
_DATAGRAM_MAX = 65_536
_HINT = (
    "is its UDP port reachable from here, and does this network's directory know the latest "
    "epoch? Otherwise: --via ssh://USER@NODE"
)


class Visit:
    """The way to a node over UDP. It needs the root key; the node needs to know nothing."""

    def __init__(self, root: RootKey, via: str) -> None:
        self._root = root
        self._via = via
        self._visitor: Visitor | None = None
        self._socket: socket.socket | None = None

    @property
    def where(self) -> str:
        """How a message calls it."""
        return self._via

    def fetch(self) -> Fetched:
        """Return all that the node holds."""
        visitor = self._meet()
        self._until(lambda: visitor.calm)
        host = visitor.host
        assert host is not None  # noqa: S101 - calm only after it was met
        return Fetched(
            id_text(self._root.network.network_id),
            tuple(one.record for one in visitor.replica),
            visitor.host_ms,
            host.id_text,
            {host.id_text: SELF},
        )

    def publish(self, records: Sequence[bytes]) -> tuple[Result, ...]:
        """Hand over one batch, and wait until the node has it."""
        visitor = self._meet()
        entries = [read_entry(one) for one in records]
        results = []
        for one in entries:
            outcome = visitor.replica.apply(one, int(time.time() * 1000))
            reason = outcome.reason.value if outcome.reason else ""
            results.append(Result(outcome.verdict.value, reason))
        self._send(visitor.publish(entries, _now()))
        self._until(lambda: visitor.calm)
        refused = visitor.unsettled
        return tuple(
            Result(Verdict.REJECTED.value, "the node does not take it")
            if one.entry_id in refused
            else result
            for one, result in zip(entries, results, strict=True)
        )

    def _meet(self) -> Visitor:
        if self._visitor is not None:
            return self._visitor
        try:
            host, port = parse_target(self._via)
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise PublishError(
                f"{self._via!r} is not found: {reason}", hint="write HOST or HOST:PORT"
            ) from error
        target = Endpoint(str(found[4][0]), port)
        self._socket = socket.socket(found[0], socket.SOCK_DGRAM)
        self._socket.settimeout(0)
        try:
            self._socket.connect((target.host, target.port))
        except OSError as error:
            reason = error.strerror
            raise PublishError(f"{self._via} cannot be reached: {reason}", hint=_HINT) from error
        own = self._socket.getsockname()[1]
        self._visitor = Visitor(self._root, target, own, _now())
        self._send(self._visitor.begin(_now()))
        return self._visitor

    def _until(self, done: Callable[[], bool]) -> None:
        visitor, channel = self._visitor, self._socket
        assert visitor is not None  # noqa: S101 - met before
        assert channel is not None  # noqa: S101 - likewise
        end = time.monotonic() + TIMEOUT_SECONDS
        while not done():
            now = time.monotonic()
            if visitor.trouble or now >= end:
                why = visitor.trouble or f"no agreement within {TIMEOUT_SECONDS:.0f} s"
                raise PublishError(f"{self._via}: {why}", hint=_HINT)
            wait = max(min(visitor.next_timer() - now, 1.0), 0.0)
            if select.select([channel], [], [], wait)[0]:
                try:
                    data = channel.recv(_DATAGRAM_MAX)
                except OSError:
                    # The machine says that nobody listens there; it may be mistaken, and retries
                    # end by themselves.
                    time.sleep(0.05)
                else:
                    self._send(visitor.datagram(data, visitor.target, _now()))
            self._send(visitor.tick(_now()))

    def _send(self, sends: Sequence[events.Send]) -> None:
        assert self._socket is not None  # noqa: S101 - met before
        for one in sends:
            try:
                self._socket.send(one.data)
            except BlockingIOError:
                select.select([], [self._socket], [], 0.1)
            except OSError:
                continue  # As if it were lost on the way.


def _now() -> Now:
    return Now(time.monotonic(), time.time())
