"""A LAN on which machines put an address: `lan_address.Lan` without a network."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from appliance.kubernetes.lan_address import Port


@dataclass
class Switch:
    """Machines see those on their own side; ``now`` is monotonic seconds."""

    machines: list[Machine] = field(default_factory=list)
    now: float = 0.0

    def holders(self, side: int | None = None) -> list[Machine]:
        """Return who answers for the address, of one side or of all."""
        return [one for one in self.machines if one.holds and side in {None, one.side}]


class Machine:
    """One on the LAN 192.168.1.0/24."""

    def __init__(self, switch: Switch, number: int) -> None:
        self.switch = switch
        self.number = number
        self.side = 0
        self.up = True
        self.broken = False
        self.address = ipaddress.IPv4Interface(f"192.168.1.{number}/24")
        self.port = Port(2, "eth0", bytes([2, 0, 0, 0, 0, number]), (self.address,))
        self.found: Port | None = self.port
        self.until = float("-inf")
        self.announced: list[float] = []
        # Whom it was told last to have the address.
        self.believes: bytes | None = None
        self._heard: bytes | None = None
        switch.machines.append(self)

    @property
    def holds(self) -> bool:
        return self.up and self.until > self.switch.now

    def _others(self) -> list[Machine]:
        return [
            one
            for one in self.switch.machines
            if one is not self and one.up and self.up and one.side == self.side
        ]

    def _check(self) -> None:
        if self.broken:
            raise OSError(1, "no")

    def find(self, node_address: str) -> Port | None:
        self._check()
        return self.found if node_address == str(self.address.ip) else None

    def ask(self, _port: Port, _address: ipaddress.IPv4Address) -> bytes | None:
        self._check()
        return next((one.port.mac for one in self._others() if one.holds), None)

    def put(self, _port: Port, _address: ipaddress.IPv4Address, seconds: int) -> None:
        self._check()
        self.until = self.switch.now + seconds

    def announce(self, port: Port, _address: ipaddress.IPv4Address) -> None:
        self.announced.append(self.switch.now)
        for one in self._others():
            one.believes = port.mac
            if one.holds:
                one._heard, self._heard = port.mac, one.port.mac

    def heard(self, _port: Port, _address: ipaddress.IPv4Address) -> bytes | None:
        found, self._heard = self._heard, None
        return found

    def remove(self, _address: ipaddress.IPv4Address) -> None:
        self._check()
        self.until = float("-inf")
        self._heard = None
