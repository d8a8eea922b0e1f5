"""WireGuard as the overlay sees it, whoever implements it. All calls block: a worker makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from appliance.overlay.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Device:
    """What the interface has to be."""

    interface: str
    private_key: bytes = field(repr=False)
    public_key: bytes
    listen_port: int
    fwmark: int


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer as WireGuard has it; ``handshake`` is Unix seconds, None: never."""

    endpoint: Endpoint | None
    handshake: float | None
    received: int
    sent: int
    allowed: frozenset[str]


class WireGuard(Protocol):
    """One WireGuard interface."""

    @property
    def mode(self) -> str:
        """``kernel`` or ``userspace``."""

    def ensure(self, device: Device) -> bool:
        """Make the interface be like this; True if one was there and was adopted as it is.

        An adopted interface keeps its peers. Raises OverlayError.
        """

    def set_peer(
        self, key: bytes, endpoint: Endpoint | None, allowed: tuple[str, ...], *, replace: bool
    ) -> None:
        """Add or change a peer, without interrupting it; no endpoint leaves the one it has.

        ``allowed`` is added to what it has, or replaces that.
        """

    def remove_peer(self, key: bytes) -> None:
        """Remove a peer, if it is there."""

    def peers(self) -> Mapping[bytes, PeerState]:
        """Return the peers by public key."""

    def close(self) -> None:
        """Let go of the interface; it and its peers stay."""


@dataclass(slots=True)
class PeerTable:
    """Writes only what differs from what WireGuard has, so that a running peer is not disturbed."""

    wireguard: WireGuard
    _known: dict[bytes, PeerState] = field(default_factory=dict)

    def read(self) -> Mapping[bytes, PeerState]:
        """Return the peers as they are now."""
        self._known = dict(self.wireguard.peers())
        return self._known

    def set(self, key: bytes, endpoint: Endpoint | None, allowed: tuple[str, ...]) -> bool:
        """Make a peer be like this; False if it was already."""
        known = self._known.get(key)
        wanted = frozenset(allowed)
        if known is not None and endpoint in {None, known.endpoint}:
            endpoint = None
            if known.allowed == wanted:
                return False
        before = known.allowed if known else frozenset()
        if before <= wanted:
            added = tuple(one for one in allowed if one not in before)
            self.wireguard.set_peer(key, endpoint, added, replace=False)
        else:
            self.wireguard.set_peer(key, endpoint, allowed, replace=True)
        # An address belongs to the peer that was given it last.
        for other, state in self._known.items():
            if other != key and state.allowed & wanted:
                self._known[other] = replace(state, allowed=state.allowed - wanted)
        if known is None:
            known = PeerState(None, None, 0, 0, wanted)
        self._known[key] = replace(known, endpoint=endpoint or known.endpoint, allowed=wanted)
        return True

    def remove(self, key: bytes) -> None:
        """Remove a peer."""
        self.wireguard.remove_peer(key)
        self._known.pop(key, None)
