"""Secret epochs: after a revocation the network goes on under a secret that the revoked never sees.

The operator's machine draws the secret of epoch n + 1, announces it in the ledger by a commitment
(root signed), and leaves one sealed box per survivor. Boxes are sealed to the X25519 key that the
member's certificate binds (its WireGuard key; libsodium's sealed box derives its keys by hashes of
its own, so the two uses of the key do not meet): no further key to certify. A member that was not
there when the boxes were made, or joins by an older token, is handed the secret by any member that
knows the epoch's revocations (`reseal`), over a datagram of the old epoch, which carries nothing
else any more.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import msgspec
import nacl.exceptions
from nacl.public import PrivateKey, PublicKey, SealedBox

from appliance.ledger.rules import EPOCH, REVOKED
from appliance.ledger.state import Replica
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import ID_SIZE, SEED_SIZE, id_text
from provisioning.membership import Member
from provisioning.network import EPOCH_MAX

# Old datagrams are read in full for this long after a node has the new secret.
OVERLAP_MS = 10 * 60 * 1000
EXCLUDED_MAX = 12
_COMMITMENT_LABEL = b"skerry epoch v1\0"
_VALUE_MAX = 512


class Announcement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the root key says of an epoch: its secret's commitment and whom it leaves behind.

    ``excluded`` are keys of the revoked bucket that are new in this epoch.
    """

    epoch: int
    commitment: bytes
    excluded: tuple[str, ...]


class Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a box holds."""

    network_id: bytes
    epoch: int
    node_id: bytes
    secret: bytes


class Reading(Enum):
    """What a datagram of an epoch may carry."""

    ALL = "everything"
    CATCH_UP = "certificates, announcements and boxes only"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Secrets:
    """The epochs a node has secrets of, and since when (Unix ms) it has the latest."""

    known: Mapping[int, bytes] = field(repr=False)
    since_ms: int = 0

    @property
    def current(self) -> int:
        """The latest epoch: what this node seals with."""
        return max(self.known)

    def reading(self, epoch: int, now_ms: int) -> Reading:
        """Return what datagrams of an epoch may carry.

        The epoch before is read in full during the overlap, while the new secret spreads. After it,
        and of older epochs at once, only what helps a member to catch up: none of it is secret.
        """
        if epoch == self.current:
            return Reading.ALL
        if epoch not in self.known:
            return Reading.NOTHING
        recent = epoch == self.current - 1 and now_ms < self.since_ms + OVERLAP_MS
        return Reading.ALL if recent else Reading.CATCH_UP


def commitment(network_id: bytes, epoch: int, secret: bytes) -> bytes:
    """Return what an announcement says of a secret; it tells nothing about it."""
    return hmac.digest(secret, _COMMITMENT_LABEL + network_id + epoch.to_bytes(4), "sha256")


def new_epoch(
    network_id: bytes,
    epoch: int,
    secret: bytes,
    survivors: Iterable[Member],
    excluded: Iterable[str],
) -> dict[str, bytes]:
    """Return what the root key has to write into the epoch bucket, by key; boxes first.

    Raises ValueError for more than EXCLUDED_MAX revocations: make several epochs.
    """
    out = tuple(sorted(excluded))
    if len(out) > EXCLUDED_MAX or not 0 < epoch <= EPOCH_MAX or len(secret) != SEED_SIZE:
        raise ValueError(f"no epoch {epoch} with {len(out)} revocations")
    entries = {
        box_key(epoch, one.node_id): seal(network_id, epoch, secret, one) for one in survivors
    }
    said = Announcement(epoch, commitment(network_id, epoch, secret), out)
    return {**entries, announcement_key(epoch): codec.encode(said)}


def seal(network_id: bytes, epoch: int, secret: bytes, member: Member) -> bytes:
    """Return a box that only ``member`` can open."""
    content = codec.encode(Sealed(network_id, epoch, member.node_id, secret))
    return SealedBox(PublicKey(member.wg_key)).encrypt(content)


def unseal(
    box: bytes, said: Announcement, *, network_id: bytes, node_id: bytes, wg_private: bytes
) -> bytes | None:
    """Return the announced secret from a box, None if it holds anything else."""
    try:
        content = SealedBox(PrivateKey(wg_private)).decrypt(box)
        sealed = codec.decode(content, Sealed, limit=_VALUE_MAX)
    except (nacl.exceptions.CryptoError, FormatError, ValueError, TypeError):
        return None
    if (sealed.network_id, sealed.epoch, sealed.node_id) != (network_id, said.epoch, node_id):
        return None
    right = commitment(network_id, said.epoch, sealed.secret)
    return sealed.secret if hmac.compare_digest(right, said.commitment) else None


def announcements(replica: Replica, now_ms: int) -> dict[int, Announcement]:
    """Return what the root key has announced, by epoch."""
    found: dict[int, Announcement] = {}
    for entry in replica.entries(EPOCH, now_ms, "epoch/"):
        try:
            said = codec.decode(entry.value, Announcement, limit=_VALUE_MAX)
        except FormatError:
            continue
        fits = 0 < said.epoch <= EPOCH_MAX and len(said.commitment) == hashlib.sha256().digest_size
        if fits and entry.key == announcement_key(said.epoch):
            found[said.epoch] = said
    return found


def advance(
    secrets: Secrets,
    replica: Replica,
    *,
    network_id: bytes,
    node_id: bytes,
    wg_private: bytes,
    now_ms: int,
    handed: Iterable[bytes] = (),
) -> Secrets:
    """Return the secrets with all that the ledger's boxes and ``handed`` ones give.

    A secret that the announcement of its epoch contradicts (two epochs of one number were begun at
    once, and the other one counts) is dropped.
    """
    known = dict(secrets.known)
    boxes = list(handed)
    for epoch, said in announcements(replica, now_ms).items():
        held = known.get(epoch)
        if held is not None and commitment(network_id, epoch, held) == said.commitment:
            continue
        entry = replica.get(EPOCH, box_key(epoch, node_id), now_ms)
        candidates = boxes if entry is None else [entry.value, *boxes]
        opened = (
            unseal(one, said, network_id=network_id, node_id=node_id, wg_private=wg_private)
            for one in candidates
        )
        secret = next((one for one in opened if one is not None), None)
        if secret is not None:
            known[epoch] = secret
        elif held is not None and len(known) > 1:
            del known[epoch]
    if known == dict(secrets.known):
        return secrets
    moved = max(known) != secrets.current
    return Secrets(known, now_ms if moved else secrets.since_ms)


def reseal(
    secrets: Secrets, replica: Replica, member: Member, *, network_id: bytes, now_ms: int
) -> bytes | None:
    """Return the current secret sealed to a member that lacks it, None if that is not for us to do.

    Only while every epoch's revocations are known here: who is left behind by an epoch must not get
    its secret from a member that has not heard yet.
    """
    said = announcements(replica, now_ms)
    current = secrets.current
    for epoch in range(1, current + 1):
        if epoch not in said:
            return None
        if any(replica.get(REVOKED, key, now_ms) is None for key in said[epoch].excluded):
            return None
    if current == 0 or replica.directory.is_revoked(member):
        return None
    return seal(network_id, current, secrets.known[current], member)


def announcement_key(epoch: int) -> str:
    """Return the key of an epoch's announcement."""
    return f"epoch/{epoch}"


def box_key(epoch: int, node_id: bytes) -> str:
    """Return the key of a member's box."""
    if len(node_id) != ID_SIZE:
        raise ValueError("not a node id")
    return f"box/{epoch}/{id_text(node_id)}"
