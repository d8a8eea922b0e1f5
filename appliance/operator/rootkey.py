"""The root key at work: signing as the network, and opening what was sealed to the operator."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

import nacl.bindings

from provisioning.keys import Context, sign
from provisioning.membership import Member
from provisioning.network import NetworkInfo

_BOX_LABEL = b"skerry operator box v1"


@dataclass(frozen=True, slots=True)
class RootKey:
    """A network and the seed of its root key."""

    network: NetworkInfo
    seed: bytes = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Sign as the ledger's root."""
        return sign(Context.LEDGER_ROOT, self.seed, data)

    def box_private(self) -> bytes:
        """Return the X25519 key that the operator's boxes are sealed to."""
        return hmac.digest(self.seed, _BOX_LABEL, "sha256")

    def recipient(self) -> Member:
        """Return the operator as one to seal a box to; it is no member."""
        public = nacl.bindings.crypto_scalarmult_base(self.box_private())
        network = self.network
        return Member(
            node_id=network.network_id,
            node_key=network.root_key,
            wg_key=public,
            name="operator",
            roles=frozenset(),
            labels={},
            grant_id=bytes(16),
            grant_expires=None,
            issued=0,
        )
