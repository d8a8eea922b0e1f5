"""Sealed datagrams: to anybody without the network's seed they are random bytes.

Layout (docs/wire-format.md): 12 random bytes, then AES-256-GCM of the plaintext under the key of
epoch and slot; questions for the time go under a key of the epoch alone. A sealed datagram shares
WireGuard's UDP port, so it never begins like a WireGuard message; nor does it carry STUN's magic
cookie, which later shares the port too.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.overlay.keyring import EPOCHS_MAX, Keyring
from appliance.overlay.otp import Seed, neighbours

NONCE_SIZE = 12
TAG_SIZE = 16
PLAINTEXT_MAX = 1152
DATAGRAM_MIN = NONCE_SIZE + TAG_SIZE + 64
DATAGRAM_MAX = NONCE_SIZE + TAG_SIZE + PLAINTEXT_MAX
_ASSOCIATED = b"skerry datagram v1"
_STUN_COOKIE = b"\x21\x12\xa4\x42"
_KEPT_KEYS = EPOCHS_MAX * 6
# The slot of the key that belongs to none.
_TIMELESS = -1


def looks_foreign(data: bytes) -> bool:
    """Say whether it begins like a WireGuard message or carries STUN's magic cookie."""
    return (1 <= data[0] <= 4 and data[1:4] == b"\0\0\0") or data[4:8] == _STUN_COOKIE


@dataclass(frozen=True, slots=True)
class Opened:
    """What a datagram held; ``timeless``: sealed with the key for questions for the time."""

    plaintext: bytes
    epoch: int
    timeless: bool = False


class Sealer:
    """Seals and opens datagrams; ``unix`` is the caller's clock in Unix seconds."""

    def __init__(
        self, keys: Seed | Keyring, *, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self.keyring = Keyring(keys) if isinstance(keys, Seed) else keys
        self._random = random
        self._keys: OrderedDict[tuple[Seed, int], AESGCM] = OrderedDict()

    def seal(self, plaintext: bytes, unix: float, *, epoch: int | None = None) -> bytes:
        """Return the datagram that carries up to PLAINTEXT_MAX bytes, in the current epoch.

        Raises KeyError for an epoch whose secret is not there.
        """
        seed = self.keyring.seed(epoch)
        return self._seal(plaintext, self._key(seed, seed.slot_at(unix)))

    def seal_timeless(self, plaintext: bytes, *, epoch: int | None = None) -> bytes:
        """Return a datagram that can be opened whatever the time; for questions for it only."""
        return self._seal(plaintext, self._key(self.keyring.seed(epoch), _TIMELESS))

    def unseal(self, data: bytes, unix: float) -> Opened | None:
        """Return what is in it, or None for whatever a member did not seal around this time."""
        if not DATAGRAM_MIN <= len(data) <= DATAGRAM_MAX or looks_foreign(data):
            return None
        nonce, sealed = data[:NONCE_SIZE], data[NONCE_SIZE:]
        for seed in self.keyring.seeds():
            for slot in (*neighbours(seed.slot_at(unix)), _TIMELESS):
                try:
                    plaintext = self._key(seed, slot).decrypt(nonce, sealed, _ASSOCIATED)
                except InvalidTag:
                    continue
                return Opened(plaintext, seed.epoch, slot == _TIMELESS)
        return None

    def _seal(self, plaintext: bytes, key: AESGCM) -> bytes:
        if len(plaintext) > PLAINTEXT_MAX:
            raise ValueError(f"{len(plaintext)} bytes do not fit a datagram")
        nonce = self._random(NONCE_SIZE)
        while looks_foreign(nonce):
            nonce = self._random(NONCE_SIZE)
        return nonce + key.encrypt(nonce, plaintext, _ASSOCIATED)

    def _key(self, seed: Seed, slot: int) -> AESGCM:
        key = self._keys.get((seed, slot))
        if key is None:
            if len(self._keys) >= _KEPT_KEYS:
                self._keys.popitem(last=False)
            material = seed.time_key() if slot == _TIMELESS else seed.sealing_key(slot)
            key = self._keys[seed, slot] = AESGCM(material)
        return key
