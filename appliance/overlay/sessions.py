"""Sessions: who said what, for messages outside the tunnel (docs/wire-format.md, "Session").

Outside the tunnel every member can seal in any name. So each handshake gives both sides a key that
only the two owners of the WireGuard keys can compute, and what is carried has a MAC under it and a
counter. It does not hide anything from other members; the ledger has no secrets from them.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.overlay.wire import MAC_SIZE, SESSION_SIZE, Carried, Kind

# Handshakes may cross, and the other side may still speak in an earlier one.
SESSIONS_PER_PEER = 4
# Counters that far behind the latest are refused; the network may deliver out of order.
WINDOW = 1024
_SALT = b"skerry session v1"
_KEY_SIZE = 32
_LABEL = b"skerry carried v1\0"


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What both sides of a handshake have in common after it."""

    identifier: bytes
    key: bytes = field(repr=False)


def session_key(shared: bytes, nonces: tuple[bytes, bytes], ids: tuple[bytes, bytes]) -> SessionKey:
    """Return the key of a handshake; nonces and ids: the initiator's, then the responder's."""
    kdf = HKDF(
        algorithm=SHA256(),
        length=_KEY_SIZE + SESSION_SIZE,
        salt=_SALT,
        info=b"".join((*nonces, *ids)),
    )
    derived = kdf.derive(shared)
    return SessionKey(derived[_KEY_SIZE:], derived[:_KEY_SIZE])


@dataclass(slots=True)
class Session:
    """One side of a session. ``ready``: the other side is known to have it."""

    keys: SessionKey
    peer: bytes
    ready: bool
    sent: int = 0
    _highest: int = 0
    _seen: int = 0

    def seal(self, kind: Kind, own_id: bytes, epoch: int, data: bytes) -> Carried:
        """Return the payload that carries data to the peer, in a datagram of the epoch."""
        self.sent += 1
        mac = self._mac(kind, own_id, epoch, self.sent, data)
        return Carried(own_id, self.keys.identifier, self.sent, mac, data)

    def open(self, kind: Kind, epoch: int, carried: Carried) -> bool:
        """Say whether the peer sent this, in this epoch, and it has not come before."""
        if carried.sender != self.peer or self._old(carried.counter):
            return False
        right = self._mac(kind, carried.sender, epoch, carried.counter, carried.data)
        if not hmac.compare_digest(right, carried.mac):
            return False
        self._note(carried.counter)
        self.ready = True
        return True

    def _mac(self, kind: Kind, sender: bytes, epoch: int, counter: int, data: bytes) -> bytes:
        head = bytes([kind]) + sender + epoch.to_bytes(4) + counter.to_bytes(8)
        return hmac.digest(self.keys.key, _LABEL + head + data, "sha256")[:MAC_SIZE]

    def _old(self, counter: int) -> bool:
        behind = self._highest - counter
        return counter < 1 or behind >= WINDOW or (behind >= 0 and self._seen >> behind & 1 == 1)

    def _note(self, counter: int) -> None:
        ahead = counter - self._highest
        if ahead > 0:
            # A jump beyond the window leaves nothing of what was seen.
            self._seen = (self._seen << ahead if ahead < WINDOW else 0) & ((1 << WINDOW) - 1) | 1
            self._highest = counter
        else:
            self._seen |= 1 << -ahead


class Sessions:
    """The latest sessions with each peer."""

    def __init__(self) -> None:
        self._by_peer: dict[bytes, list[Session]] = {}
        self._by_id: dict[bytes, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_id.values())

    def add(self, peer: bytes, keys: SessionKey, *, ready: bool) -> None:
        """Take up the session of a handshake; the same one twice is one."""
        if keys.identifier in self._by_id:
            return
        session = self._by_id[keys.identifier] = Session(keys, peer, ready)
        mine = self._by_peer.setdefault(peer, [])
        mine.append(session)
        if len(mine) > SESSIONS_PER_PEER:
            del self._by_id[mine.pop(0).keys.identifier]

    def confirm(self, identifier: bytes) -> None:
        """Note that the other side has a session."""
        if (session := self._by_id.get(identifier)) is not None:
            session.ready = True

    def find(self, identifier: bytes) -> Session | None:
        """Return a session by its id."""
        return self._by_id.get(identifier)

    def latest(self, peer: bytes) -> Session | None:
        """Return the session in which to speak to a peer."""
        mine = self._by_peer.get(peer, ())
        return next((one for one in reversed(mine) if one.ready), None)

    def forget(self, peer: bytes) -> None:
        """Drop all sessions with a peer."""
        for session in self._by_peer.pop(peer, ()):
            del self._by_id[session.keys.identifier]
