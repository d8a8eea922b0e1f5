"""The secrets of epochs that a node holds, and how it keeps them over a restart.

The epoch of the node's token is in its identity; later ones come sealed through the ledger, or by
a catch-up from a member (`appliance.ledger.epochs`). They are kept in the state database: if that
is lost, members hand them over again.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from appliance.ledger import epochs
from appliance.ledger.entry import ENTRY_MAX
from appliance.ledger.epochs import Secrets
from appliance.ledger.limits import Allowance
from appliance.ledger.rules import EPOCH, REVOKED
from appliance.ledger.state import Replica
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import SEED_SIZE
from provisioning.membership import Member
from provisioning.network import EPOCH_MAX, NetworkInfo

STORE_KEY = "control/epochs"
# Of more than these nobody is heard, so nobody could use them.
KEPT = 4
CATCH_UP_MAX = 8 * 1024
_RECORD_LIMIT = 4096
_VERSION = 1


class SecretsRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How secrets are kept in the store; ``since_ms`` is Unix milliseconds."""

    version: int
    network_id: bytes
    since_ms: int
    known: tuple[tuple[int, bytes], ...]


# Each costs the checks of up to some 40 signatures. At once as many as a node needs that was away
# for a hundred epochs.
CATCH_UPS = 16.0, 128.0
MUTE_SECONDS = 60.0
_HEARD_MAX = 1024


class CatchUp(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What brings a member to the current epoch.

    ``records`` are entries of the root key: announcements, the member's boxes, revocations. ``box``
    is the current secret, sealed to the member by another one; empty if the root's own box is
    among the records.
    """

    records: tuple[bytes, ...]
    box: bytes


def load(data: bytes | None, network: NetworkInfo) -> Secrets:
    """Return the secrets that were kept, with the token's own; damage costs the former only."""
    first = {network.epoch: network.otp_seed}
    if data is None:
        return Secrets(first)
    try:
        record = codec.decode(data, SecretsRecord, limit=_RECORD_LIMIT)
    except FormatError:
        return Secrets(first)
    known = dict(record.known)
    right = (
        record.version == _VERSION
        and record.network_id == network.network_id
        and all(0 <= one <= EPOCH_MAX and len(known[one]) == SEED_SIZE for one in known)
    )
    return Secrets({**known, **first}, record.since_ms) if right else Secrets(first)


def dump(secrets: Secrets, network: NetworkInfo) -> bytes:
    """Return the form in the store."""
    known = tuple(sorted(secrets.known.items()))
    return codec.encode(
        SecretsRecord(_VERSION, network.network_id, max(secrets.since_ms, 0), known)
    )


def bounded(secrets: Secrets) -> Secrets:
    """Return the latest few."""
    kept = dict(sorted(secrets.known.items())[-KEPT:])
    return secrets if len(kept) == len(secrets.known) else Secrets(kept, secrets.since_ms)


def catch_up(
    secrets: Secrets,
    replica: Replica,
    member: Member,
    epoch: int,
    *,
    network_id: bytes,
    now_ms: int,
) -> tuple[bytes, ...]:
    """Return the messages that bring a member from ``epoch`` to ours; none if that is not for us.

    Whoever is revoked, or not known as a member here, gets nothing.
    """
    if replica.directory.is_revoked(member):
        return ()
    said = epochs.announcements(replica, now_ms)
    later = sorted(one for one in said if one > epoch)
    entries = []
    for one in later:
        entries += [replica.get(REVOKED, key, now_ms) for key in said[one].excluded]
        entries.append(replica.get(EPOCH, epochs.announcement_key(one), now_ms))
    box_entry = replica.get(EPOCH, epochs.box_key(secrets.current, member.node_id), now_ms)
    box = b""
    if box_entry is None:
        handed = epochs.reseal(secrets, replica, member, network_id=network_id, now_ms=now_ms)
        if handed is None:
            return ()
        box = handed
    entries.append(box_entry)
    records = [entry.record for entry in entries if entry is not None]
    return tuple(_packed(records, box))


def _packed(records: list[bytes], box: bytes) -> list[bytes]:
    """Return messages of at most CATCH_UP_MAX bytes; the box goes last, when it can be judged."""
    groups: list[list[bytes]] = [[]]
    room = CATCH_UP_MAX - 256
    for record in records:
        if groups[-1] and sum(map(len, groups[-1])) + len(record) + 8 > room:
            groups.append([])
        groups[-1].append(record)
    last = len(groups) - 1
    return [
        codec.encode(CatchUp(tuple(group), box if index == last else b""))
        for index, group in enumerate(groups)
    ]


def read_catch_up(data: bytes) -> CatchUp:
    """Return what a catch-up says. Raises FormatError."""
    message = codec.decode(data, CatchUp, limit=CATCH_UP_MAX)
    if any(len(record) > ENTRY_MAX for record in message.records):
        raise FormatError("an entry in a catch-up is too long")
    return message


class Hearing:
    """How many catch-ups are listened to, of each peer; times are monotonic seconds."""

    def __init__(self) -> None:
        self._peers: OrderedDict[bytes, Allowance] = OrderedDict()

    def admits(self, peer: bytes, mono: float) -> bool:
        """Say whether to read another one from a peer."""
        account = self._peers.get(peer)
        if account is None:
            rate, burst = CATCH_UPS
            account = self._peers[peer] = Allowance(rate, burst, burst, mono)
            if len(self._peers) > _HEARD_MAX:
                self._peers.popitem(last=False)
        return account.take(1.0, mono)

    def mute(self, peer: bytes, mono: float) -> None:
        """Listen to no catch-up of a peer for a while: there was something wrong in one."""
        rate, burst = CATCH_UPS
        self._peers[peer] = Allowance(rate, burst, 1.0 - rate * MUTE_SECONDS, mono)
