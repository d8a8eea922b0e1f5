"""The administrator's kubeconfig for the operator: sealed to the network's root key.

Every node knows the root's public key (Ed25519); as X25519 (libsodium's ``crypto_sign_ed25519_*_to_
curve25519``) it takes a sealed box that only the root key opens. So a visit to the ledger is enough
for `skerry kubeconfig`, without access to any node.
"""

from __future__ import annotations

import nacl.bindings
import nacl.exceptions
from nacl.public import PrivateKey, PublicKey, SealedBox

from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.kubeconfig import Kubeconfig, pack, unpack
from appliance.ledger.entry import VALUE_MAX
from provisioning.network import network_id as id_of

_MAGIC = b"skerry kubeconfig v1\0"


def seal_for_operator(root_key: str, network_id: bytes, config: Kubeconfig) -> bytes:
    """Return the sealed form. Raises KubernetesError: no such root key, or too long."""
    try:
        root = bytes.fromhex(root_key)
        if id_of(root) != network_id:
            raise KubernetesError("the root key that the supervisor told is not of this network")
        public = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(root)
    except (ValueError, RuntimeError, nacl.exceptions.CryptoError) as error:
        raise KubernetesError("the root key that the supervisor told is none") from error
    sealed = SealedBox(PublicKey(public)).encrypt(_MAGIC + network_id + pack(config).encode())
    if len(sealed) > VALUE_MAX:
        raise KubernetesError(
            f"the kubeconfig has {len(sealed)} bytes sealed, an entry holds {VALUE_MAX}"
        )
    return sealed


def open_as_operator(seed: bytes, network_id: bytes, sealed: bytes, where: str) -> Kubeconfig:
    """Return what a server sealed; ``seed`` is the root key's. Raises KubernetesError."""
    public, secret = nacl.bindings.crypto_sign_seed_keypair(seed)
    private = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(secret)
    start = _MAGIC + network_id
    try:
        opened = SealedBox(PrivateKey(private)).decrypt(sealed)
    except (nacl.exceptions.CryptoError, ValueError, TypeError) as error:
        raise KubernetesError(f"{where} is not sealed to this network's root key") from error
    if id_of(public) != network_id or not opened.startswith(start):
        raise KubernetesError(f"{where} holds no kubeconfig of this network")
    return unpack(opened.removeprefix(start), where)
