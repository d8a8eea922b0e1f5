"""What changes with time: keys and names derived from the network's OTP seed.

HKDF-SHA256 (RFC 5869), one output per label, epoch and slot; see docs/wire-format.md. A slot is an
hour; what belongs to the slots beside the current one is accepted, so clocks may differ by up to an
hour at any time.
"""

from __future__ import annotations

import base64
import hmac
import math
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SLOT_SECONDS = 3600
SLOT_MAX = 2**40
_SALT = b"skerry otp v1"
_SEALING = b"sealing"
_DISCOVERY = b"discovery"
_TIME = b"time"
_NAME_SIZE = 15  # the longest service name of RFC 6335; 75 bits


@dataclass(frozen=True, slots=True)
class Seed:
    """The secret of an epoch."""

    secret: bytes
    epoch: int
    slot_seconds: int = SLOT_SECONDS

    def __repr__(self) -> str:
        return f"Seed(epoch={self.epoch})"

    def slot_at(self, unix: float) -> int:
        """Return the slot of a Unix time; a time that cannot be counts as the nearest that can."""
        if not math.isfinite(unix):
            return 0
        return min(max(int(unix // self.slot_seconds), 0), SLOT_MAX)

    def next_slot_in(self, unix: float) -> float:
        """Return the seconds until the slot changes."""
        return self.slot_seconds - unix % self.slot_seconds

    def sealing_key(self, slot: int) -> bytes:
        """Return the AES-256 key for datagrams of a slot."""
        return self._derive(_SEALING, slot)

    def discovery_key(self, slot: int) -> bytes:
        """Return the key from which the names of a slot are made."""
        return self._derive(_DISCOVERY, slot)

    def time_key(self) -> bytes:
        """Return the AES-256 key for questions for the time; it belongs to no slot."""
        return self._derive(_TIME, 0)

    def _derive(self, label: bytes, slot: int) -> bytes:
        info = label + b"\0" + struct.pack(">IQ", self.epoch, slot)
        return HKDF(algorithm=SHA256(), length=32, salt=_SALT, info=info).derive(self.secret)


def neighbours(slot: int) -> tuple[int, ...]:
    """Return the slots whose keys and names are accepted, the likeliest first."""
    return tuple(one for one in (slot, slot - 1, slot + 1) if 0 <= one <= SLOT_MAX)


def service_name(discovery_key: bytes) -> str:
    """Return the 15 letters and digits under which members of a slot find each other."""
    return _name(discovery_key, b"service")


def instance_name(discovery_key: bytes, node_id: bytes) -> str:
    """Return a node's name within a slot; without the seed it tells nothing."""
    return _name(discovery_key, b"instance\0" + node_id)


def host_name(discovery_key: bytes, node_id: bytes) -> str:
    """Return the host label that a node's addresses go under within a slot."""
    return _name(discovery_key, b"host\0" + node_id)


def _name(key: bytes, message: bytes) -> str:
    text = base64.b32encode(hmac.digest(key, message, "sha256")).decode().lower()[:_NAME_SIZE]
    # RFC 6335 wants a letter; a name of digits only (once in 10^10) begins with one.
    return text if not text.isdigit() else "a" + text[1:]
