"""Ed25519 signatures with a context, key making, short names of keys.

Every signature is made over ``context || 0x00 || data``; the contexts contain no zero byte, so a
signature of one kind never passes for another (RFC 8032 keys, domain separation by prefix).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from enum import Enum

import nacl.bindings
import nacl.exceptions

SEED_SIZE = 32
KEY_SIZE = 32
SIGNATURE_SIZE = 64
ID_SIZE = 16


class Context(Enum):
    """What a signature is for."""

    GRANT = b"skerry grant v1"
    CERTIFICATE = b"skerry certificate v1"
    NODE_PROOF = b"skerry node proof v1"
    MESSAGE = b"skerry node message v1"
    LEDGER_ROOT = b"skerry ledger root v1"


def random_bytes(size: int) -> bytes:
    """Return bytes from the kernel's generator."""
    return nacl.bindings.randombytes(size)


def public_key(seed: bytes) -> bytes:
    """Return the Ed25519 public key of a 32-byte seed."""
    public, _ = nacl.bindings.crypto_sign_seed_keypair(seed)
    return public


def sign(context: Context, seed: bytes, data: bytes) -> bytes:
    """Return the 64-byte signature of ``data`` by the key of ``seed``."""
    _, secret = nacl.bindings.crypto_sign_seed_keypair(seed)
    signed = nacl.bindings.crypto_sign(context.value + b"\0" + data, secret)
    return signed[:SIGNATURE_SIZE]


def verify(context: Context, key: bytes, data: bytes, signature: bytes) -> bool:
    """Say whether ``signature`` is that of ``data`` by ``key``; wrong sizes are simply False."""
    if len(key) != KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        nacl.bindings.crypto_sign_open(signature + context.value + b"\0" + data, key)
    except (nacl.exceptions.BadSignatureError, ValueError):
        return False
    return True


def wireguard_public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a 32-byte private key."""
    return nacl.bindings.crypto_scalarmult_base(private)


def short_hash(label: bytes, data: bytes) -> bytes:
    """Return the first 16 bytes of SHA-256(label || data): how ids are made."""
    return hashlib.sha256(label + data).digest()[:ID_SIZE]


@functools.lru_cache(maxsize=4096)
def id_text(identifier: bytes) -> str:
    """Return an id as people see it: lower-case base32 (RFC 4648) without padding."""
    return base64.b32encode(identifier).decode().rstrip("=").lower()
