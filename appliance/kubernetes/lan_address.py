"""An address of the LAN that one machine after the other has: when it is taken, told and left.

Decisions only; `lan_edge` does it. Nobody takes it while another machine answers for it, and it
goes by itself (the kernel counts) when nobody has kept it for `LIFETIME_SECONDS`: a cluster agent
that ends without a word does not leave it behind for ever.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from typing import Protocol

from appliance.kubernetes.arp import MAC_SIZE, mac_text
from appliance.problem import Problem

log = logging.getLogger(__name__)

# A turn of the agent takes a few seconds, or, with a supervisor that hangs, many.
LIFETIME_SECONDS = 30
ANNOUNCE_SECONDS = 4.0
# A machine that says it has the address too is reported for so long after it was heard.
RIVAL_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Port:
    """An interface of the LAN: its MAC (empty: it is no Ethernet), addresses but the moving one."""

    index: int
    name: str
    mac: bytes
    addresses: tuple[ipaddress.IPv4Interface, ...]


class Lan(Protocol):
    """What is done on the LAN; every method blocks for a second at most, and raises OSError."""

    def find(self, node_address: str) -> Port | None:
        """Return the interface that has a node's address."""

    def ask(self, port: Port, address: ipaddress.IPv4Address) -> bytes | None:
        """Return the MAC of another machine that answers for an address."""

    def put(self, port: Port, address: ipaddress.IPv4Address, seconds: int) -> None:
        """Put an address on an interface, or let it be there for longer."""

    def announce(self, port: Port, address: ipaddress.IPv4Address) -> None:
        """Tell everybody who has an address; begin to listen whether another one says so."""

    def heard(self, port: Port, address: ipaddress.IPv4Address) -> bytes | None:
        """Return the MAC of another machine that said since that it has the address."""

    def remove(self, address: ipaddress.IPv4Address) -> None:
        """Take the address away from wherever it was put, and stop listening."""


class LanAddress:
    """The address on this node. ``now`` is monotonic seconds."""

    def __init__(self, lan: Lan) -> None:
        self._lan = lan
        self._port: Port | None = None
        # What an earlier run left is taken away, too.
        self._clean = False
        # When the kernel takes it away if it is not kept.
        self._until = float("-inf")
        self._announced = float("-inf")
        self._rival: tuple[bytes, float] | None = None

    @property
    def here(self) -> bool:
        """Whether this node has it."""
        return self._port is not None

    def leave(self, address: ipaddress.IPv4Address) -> None:
        """Do without it."""
        if self._clean:
            return
        self._lan.remove(address)
        self._port, self._rival, self._clean = None, None, True

    def keep(self, address: ipaddress.IPv4Address, node_address: str, now: float) -> Problem | None:
        """Have it, if that can be; return what stands against it, or beside it."""
        port = self._lan.find(node_address)
        wrong = _unfit(port, address, node_address)
        if wrong is not None or port is None:
            self.leave(address)
            return wrong
        there = self._port
        gone = now > self._until
        if there is None or gone or (there.index, there.mac) != (port.index, port.mac):
            other = self._lan.ask(port, address)
            if other is not None:
                self.leave(address)
                return _taken(port, address, other)
            if there is not None:
                self._lan.remove(address)
            self._announced, self._rival = float("-inf"), None
        self._clean = False
        self._lan.put(port, address, LIFETIME_SECONDS)
        self._port, self._until = port, now + LIFETIME_SECONDS
        return self._speak(port, address, now)

    def _speak(self, port: Port, address: ipaddress.IPv4Address, now: float) -> Problem | None:
        other = self._lan.heard(port, address)
        if other is not None:
            if self._rival is None:
                log.warning("%s says that it has %s, too", mac_text(other), address)
            self._rival = other, now
        if other is not None or now - self._announced >= ANNOUNCE_SECONDS:
            self._lan.announce(port, address)
            self._announced = now
        if self._rival is not None and now - self._rival[1] > RIVAL_SECONDS:
            self._rival = None
        return None if self._rival is None else _shared(port, address, self._rival[0])


def _unfit(port: Port | None, address: ipaddress.IPv4Address, node_address: str) -> Problem | None:
    if port is None:
        return Problem(
            "api-address-no-lan",
            f"no interface has this node's address {node_address}, so the API's address {address} "
            "can't be put beside it",
            "A node behind a NAT can't be a server without the tunnel.",
        )
    if len(port.mac) != MAC_SIZE:
        return Problem(
            "api-address-no-lan",
            f"{port.name}, which has this node's address, is no Ethernet: nobody would find the "
            f"API's address {address} there",
            "Servers have to be on an Ethernet or wireless LAN without the tunnel.",
        )
    if any(one.ip == address for one in port.addresses):
        return Problem(
            "api-address-taken",
            f"the API's address {address} is this node's own",
            _HINT,
        )
    if not any(address in one.network for one in port.addresses):
        networks = ", ".join(str(one.network) for one in port.addresses)
        return Problem(
            "api-address-off-lan",
            f"the API's address {address} is not of {port.name}'s LAN ({networks}): nobody would "
            "look for it there",
            "All servers have to be on the LAN that the setting api_address is of.",
        )
    return None


_HINT = (
    "The setting api_address is to be an address that no machine has and DHCP gives to nobody. It "
    "holds for the network's life: give that machine another one."
)


def _taken(port: Port, address: ipaddress.IPv4Address, other: bytes) -> Problem:
    return Problem(
        "api-address-taken",
        f"another machine on {port.name} ({mac_text(other)}) has the API's address {address}; this "
        "node does not take it",
        f"Of servers, one may be just giving it up. Else: {_HINT[0].lower()}{_HINT[1:]}",
    )


def _shared(port: Port, address: ipaddress.IPv4Address, other: bytes) -> Problem:
    return Problem(
        "api-address-shared",
        f"another machine on {port.name} ({mac_text(other)}) says that it has the API's address "
        f"{address}, too",
        f"After a partition of the LAN that passes within seconds. Else: {_HINT[0].lower()}"
        f"{_HINT[1:]}",
    )
