"""Sealed datagrams: to anybody without the network's seed they are random bytes.

Layout (docs/wire-format.md): 12 random bytes, then AES-256-GCM of the plaintext under the key of
epoch and slot. A sealed datagram shares WireGuard's UDP port, so it never begins like a WireGuard
message; nor does it carry STUN's magic cookie, which later shares the port too.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.overlay.otp import Seed, neighbours

NONCE_SIZE = 12
TAG_SIZE = 16
PLAINTEXT_MAX = 1152
DATAGRAM_MIN = NONCE_SIZE + TAG_SIZE + 64
DATAGRAM_MAX = NONCE_SIZE + TAG_SIZE + PLAINTEXT_MAX
_ASSOCIATED = b"skerry datagram v1"
_STUN_COOKIE = b"\x21\x12\xa4\x42"
_KEPT_KEYS = 8


def looks_foreign(data: bytes) -> bool:
    """Say whether it begins like a WireGuard message or carries STUN's magic cookie."""
    return (1 <= data[0] <= 4 and data[1:4] == b"\0\0\0") or data[4:8] == _STUN_COOKIE


class Sealer:
    """Seals and opens datagrams; ``unix`` is the caller's clock in Unix seconds."""

    def __init__(self, seed: Seed, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self._seed = seed
        self._random = random
        self._keys: dict[int, AESGCM] = {}

    def seal(self, plaintext: bytes, unix: float) -> bytes:
        """Return the datagram that carries up to PLAINTEXT_MAX bytes."""
        if len(plaintext) > PLAINTEXT_MAX:
            raise ValueError(f"{len(plaintext)} bytes do not fit a datagram")
        nonce = self._random(NONCE_SIZE)
        while looks_foreign(nonce):
            nonce = self._random(NONCE_SIZE)
        key = self._key(self._seed.slot_at(unix))
        return nonce + key.encrypt(nonce, plaintext, _ASSOCIATED)

    def unseal(self, data: bytes, unix: float) -> bytes | None:
        """Return the plaintext, or None for whatever a member did not seal around this time."""
        if not DATAGRAM_MIN <= len(data) <= DATAGRAM_MAX or looks_foreign(data):
            return None
        nonce, sealed = data[:NONCE_SIZE], data[NONCE_SIZE:]
        for slot in neighbours(self._seed.slot_at(unix)):
            try:
                return self._key(slot).decrypt(nonce, sealed, _ASSOCIATED)
            except InvalidTag:
                continue
        return None

    def _key(self, slot: int) -> AESGCM:
        key = self._keys.get(slot)
        if key is None:
            if len(self._keys) >= _KEPT_KEYS:
                self._keys.clear()
            key = self._keys[slot] = AESGCM(self._seed.sealing_key(slot))
        return key
