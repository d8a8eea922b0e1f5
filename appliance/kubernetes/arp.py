"""ARP for Ethernet and IPv4 (RFC 826), as much as one address that moves needs (RFC 5227)."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum

ETHERTYPE = 0x0806
BROADCAST = b"\xff" * 6
MAC_SIZE = 6
NOBODY = ipaddress.IPv4Address(0)
_ETHERNET = struct.Struct("!6s6sH")
_BODY = struct.Struct("!HHBBH6s4s6s4s")
# Ethernet, IPv4, and the lengths of their addresses.
_KIND = (1, 0x0800, 6, 4)


class Operation(IntEnum):
    """What is said."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True, slots=True)
class Arp:
    """A packet: who says it has ``sender``, asked about or told about ``target``."""

    operation: Operation
    mac: bytes
    sender: ipaddress.IPv4Address
    target: ipaddress.IPv4Address


def probe(mac: bytes, address: ipaddress.IPv4Address) -> bytes:
    """Return the frame that asks whether anybody has an address, and claims nothing itself."""
    return _frame(Operation.REQUEST, mac, NOBODY, bytes(MAC_SIZE), address)


def announcements(mac: bytes, address: ipaddress.IPv4Address) -> tuple[bytes, bytes]:
    """Return the frames that tell everybody who has an address now.

    As a question (RFC 5227, 3) and as an answer: some machines believe the one, some the other.
    """
    return (
        _frame(Operation.REQUEST, mac, address, bytes(MAC_SIZE), address),
        _frame(Operation.REPLY, mac, address, BROADCAST, address),
    )


def read(frame: bytes) -> Arp | None:
    """Return what a frame says, None for anything else; padding behind it is allowed."""
    if len(frame) < _ETHERNET.size + _BODY.size:
        return None
    _, _, ethertype = _ETHERNET.unpack_from(frame)
    *kind, operation, mac, sender, _, target = _BODY.unpack_from(frame, _ETHERNET.size)
    if ethertype != ETHERTYPE or tuple(kind) != _KIND or operation not in set(Operation):
        return None
    return Arp(
        Operation(operation), mac, ipaddress.IPv4Address(sender), ipaddress.IPv4Address(target)
    )


def claims(frame: bytes, address: ipaddress.IPv4Address, *, own: bytes) -> bytes | None:
    """Return the MAC of a machine other than ``own`` that says it has an address."""
    said = read(frame)
    return said.mac if said is not None and said.sender == address and said.mac != own else None


def mac_text(mac: bytes) -> str:
    """Return a MAC as people write it."""
    return mac.hex(":")


def _frame(
    operation: Operation,
    mac: bytes,
    sender: ipaddress.IPv4Address,
    target_mac: bytes,
    target: ipaddress.IPv4Address,
) -> bytes:
    body = _BODY.pack(*_KIND, operation, mac, sender.packed, target_mac, target.packed)
    return _ETHERNET.pack(BROADCAST, mac, ETHERTYPE) + body
