"""What the operator's machine knows of the network: a verified snapshot of what a node gave.

The last dump is kept in the network's directory (``seen.json``), so that lists work and statements
can be made while no node can be reached. It is a cache: damaged or missing, it is fetched again.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from appliance.ledger.directory import Directory
from appliance.ledger.entry import Entry, read_entry
from appliance.ledger.errors import EntryError
from appliance.ledger.hlc import MAX_SKEW_MS, MS_MAX, is_future, ms_of
from appliance.ledger.state import Replica
from appliance.operator.errors import ClockError, PublishError
from appliance.operator.publisher import Fetched, Publisher
from provisioning.durations import moment_text
from provisioning.files import FileError, read_small, write_all
from provisioning.keys import id_text
from provisioning.network import NetworkInfo

SEEN_FILE = "seen.json"
FILE_FORMAT = 1
_FILE_LIMIT = 256 * 1024 * 1024
_KEPT_BYTES_MAX = 64 * 1024 * 1024


class _File(msgspec.Struct, frozen=True):
    format: int
    network_id: str
    at_ms: int
    where: str
    records: list[str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A replica as of ``at_ms`` (this machine's Unix milliseconds), as ``where`` gave it.

    ``fresh``: just fetched. ``unread``: records that this release cannot read or does not accept.
    """

    replica: Replica
    where: str
    at_ms: int
    fresh: bool
    unread: int = 0
    node_id: str | None = None
    states: Mapping[str, str] = field(default_factory=dict)


def fetch_snapshot(
    directory: Path, network: NetworkInfo, publisher: Publisher, now_ms: int
) -> Snapshot:
    """Fetch and verify what a node holds, and keep it for when none can be reached.

    Raises PublishError; ClockError if this machine's clock and the network's are far apart.
    """
    fetched = publisher.fetch()
    if fetched.network_id != id_text(network.network_id):
        raise PublishError(
            f"{publisher.where} is of another network ({fetched.network_id[:26]}), not of "
            f"{network.name} ({id_text(network.network_id)})",
            hint="say which network with --network, or go through another node with --via",
        )
    check_clock(fetched.now_ms, now_ms, publisher.where)
    entries, unread = _read(fetched.records)
    replica, refused = _replica(network, entries, now_ms)
    _check_stamps(replica, entries, now_ms)
    _keep(directory, network, fetched, publisher.where, now_ms)
    return Snapshot(
        replica,
        publisher.where,
        now_ms,
        fresh=True,
        unread=unread + refused,
        node_id=fetched.node_id,
        states=fetched.states,
    )


def last_snapshot(directory: Path, network: NetworkInfo, now_ms: int) -> Snapshot | None:
    """Return what was seen last, or None if nothing usable is kept."""
    try:
        content = msgspec.json.decode(read_small(directory / SEEN_FILE, _FILE_LIMIT), type=_File)
        right = content.format == FILE_FORMAT and 0 <= content.at_ms <= MS_MAX
        if not right or content.network_id != id_text(network.network_id):
            return None
        entries, unread = _read(base64.b64decode(one) for one in content.records)
    except (FileError, OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    replica, refused = _replica(network, entries, now_ms)
    where = "".join(one for one in content.where[:200] if one.isprintable())
    return Snapshot(replica, where, content.at_ms, fresh=False, unread=unread + refused)


def empty_snapshot(network: NetworkInfo, now_ms: int) -> Snapshot:
    """Return the snapshot of a network of which nothing is known: it has nothing in it."""
    return Snapshot(Replica(Directory(network)), "", now_ms, fresh=False)


def check_clock(theirs_ms: int | None, now_ms: int, where: str) -> None:
    """Raise ClockError if a node's time and this machine's differ by more than entries may."""
    if theirs_ms is None or abs(theirs_ms - now_ms) <= MAX_SKEW_MS:
        return
    raise ClockError(
        f"this machine's clock says {moment_text(now_ms / 1000)}, the network's "
        f"{moment_text(min(max(theirs_ms, 0), MS_MAX) / 1000)} (asked: {where}); "
        "nothing was signed",
        hint="set the clock that is wrong (timedatectl), then give the command again",
    )


def _check_stamps(replica: Replica, entries: Iterable[Entry], now_ms: int) -> None:
    """Raise ClockError if members stamped what would be the future here: it is the past there."""
    for entry in entries:
        if not is_future(entry.stamp, now_ms):
            continue
        member = replica.directory.judge(entry)
        network = replica.directory.network
        if member is not None and entry.signed_by(member.node_key, network.network_id):
            raise ClockError(
                f"this machine's clock says {moment_text(now_ms / 1000)}, but {member.name} wrote "
                f"at {moment_text(ms_of(entry.stamp) / 1000)}; nothing was signed",
                hint="set this machine's clock (timedatectl), then give the command again",
            )


def _read(records: Iterable[bytes]) -> tuple[list[Entry], int]:
    entries: list[Entry] = []
    unread = 0
    for one in records:
        try:
            entries.append(read_entry(one))
        except EntryError:
            unread += 1
    return entries, unread


def _replica(network: NetworkInfo, entries: list[Entry], now_ms: int) -> tuple[Replica, int]:
    replica = Replica(Directory(network))
    return replica, replica.restore(entries, now_ms)


def _keep(directory: Path, network: NetworkInfo, fetched: Fetched, where: str, now_ms: int) -> None:
    if sum(map(len, fetched.records)) > _KEPT_BYTES_MAX:
        return
    records = [base64.b64encode(one).decode() for one in fetched.records]
    content = _File(FILE_FORMAT, id_text(network.network_id), now_ms, where, records)
    # A cache: without it, everything but working offline goes on.
    with contextlib.suppress(OSError):
        write_all(directory, {SEEN_FILE: msgspec.json.encode(content)})
