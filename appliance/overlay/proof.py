"""Proof that a node holds the WireGuard key in its certificate (docs/wire-format.md, "Handshake").

A certificate binds a WireGuard key that its node merely names. Without a proof a member could name
another member's key there, and its entry would take over that of the key's owner. The proof is a
MAC under the key that only the two owners of the WireGuard keys can compute (X25519, RFC 7748).
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from dataclasses import dataclass

import nacl.bindings
import nacl.exceptions
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.overlay.errors import WireError

PROOF_SIZE = 16
KEPT = 1024
CAUSE = "unproven-tunnel-key"
_SALT = b"skerry tunnel key v1"
_INFO = b"handshake proof"


@dataclass(frozen=True, slots=True)
class Statement:
    """What a proof is about: one message of one handshake, from one node to another."""

    kind: int
    sender: bytes
    receiver: bytes
    nonce: bytes
    echo: bytes

    def packed(self) -> bytes:
        """Return the bytes under the MAC; every part has a fixed size."""
        return bytes([self.kind]) + self.sender + self.receiver + self.nonce + self.echo


def shared_secret(private: bytes, other: bytes) -> bytes:
    """Return what only the owners of the two WireGuard keys can compute (X25519).

    Raises WireError for a key of low order: with it everybody would share the secret.
    """
    try:
        shared = nacl.bindings.crypto_scalarmult(private, other)
    except nacl.exceptions.RuntimeError as error:
        raise WireError(CAUSE, "its WireGuard key is none: a point of low order") from error
    if not any(shared):
        raise WireError(CAUSE, "its WireGuard key is none: a point of low order")
    return shared


def make_proof(shared: bytes, statement: Statement) -> bytes:
    """Return the proof by an owner of a shared secret, for the other one."""
    key = HKDF(algorithm=SHA256(), length=32, salt=_SALT, info=_INFO).derive(shared)
    return hmac.digest(key, statement.packed(), "sha256")[:PROOF_SIZE]


def check_proof(shared: bytes, statement: Statement, proof: bytes) -> bool:
    """Say whether an owner of the shared secret made the proof."""
    return hmac.compare_digest(make_proof(shared, statement), proof)


class TunnelKeys:
    """Shared secrets of a node with others, each computed once; the last KEPT are kept."""

    def __init__(self, private: bytes) -> None:
        self._private = private
        self._shared: OrderedDict[bytes, bytes] = OrderedDict()

    def shared(self, other: bytes) -> bytes:
        """Return the secret shared with the owner of a public key. Raises as `shared_secret`."""
        found = self._shared.get(other)
        if found is None:
            found = self._shared[other] = shared_secret(self._private, other)
            if len(self._shared) > KEPT:
                self._shared.popitem(last=False)
        return found
