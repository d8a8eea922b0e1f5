"""What the root key says: from a replica of the network and an intent to signed entries. Pure.

`Desk` is fed a replica as a node has it and what earlier commands left unpublished; each intent
adds entries to ``made``, in the order in which they are to be published. Publishing may break off
after any entry, so every prefix has to be safe (docs/ledger.md, "Root statements"):

- revocations come first: whoever is to go is out even if nothing else arrives;
- then per epoch its boxes, then its announcement: nobody is told of a secret that survivors lack;
- a grant is closed after its members were admitted for good;
- what only tidies up comes last.

Each epoch also has a box for the root key itself, so that every copy of the root key, and one that
was restored from a backup, learns the secret that tokens have to carry.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.cluster import orders
from appliance.cluster.ranges import carries_pods, pack, plan_for, range_view
from appliance.ledger import assigned, claims, epochs
from appliance.ledger.directory import GRANT_PREFIX, NODE_PREFIX, revocation_key
from appliance.ledger.entry import Entry
from appliance.ledger.epochs import EXCLUDED_MAX, Announcement
from appliance.ledger.hlc import Clock, is_future
from appliance.ledger.rules import ASSIGNED, BUCKETS, EPOCH, REVOKED
from appliance.ledger.state import TRANSIENT, Replica, Verdict
from appliance.ledger.writer import Writer
from appliance.operator.errors import OperatorError
from appliance.operator.rootkey import RootKey
from appliance.overlay.visitors import is_visitor
from provisioning import codec
from provisioning.clusters import api_addresses_kept
from provisioning.errors import FormatError
from provisioning.keys import SEED_SIZE, id_text, random_bytes
from provisioning.membership import Member
from provisioning.network import EPOCH_MAX

REASON_MAX = 200


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of entries that were not known to have arrived.

    ``resend`` are to be published again, ``landed`` are in the ledger, ``superseded`` lost their
    place to later statements, ``displaced`` epochs to another operator's. The others were made
    anew.
    """

    resend: tuple[Entry, ...] = ()
    landed: tuple[Entry, ...] = ()
    superseded: tuple[Entry, ...] = ()
    displaced: frozenset[int] = frozenset()


class Desk:
    """Where the root's statements are written, on top of what the network knows.

    ``sequence`` and ``stamp`` are the highest that this directory's commands ever gave. Every
    intent raises OperatorError (or the error of a value's maker) before anything is made.
    """

    def __init__(
        self,
        root: RootKey,
        replica: Replica,
        now_ms: int,
        *,
        sequence: int = 0,
        stamp: int = 0,
        draw: Callable[[int], bytes] = random_bytes,
    ) -> None:
        self.root = root
        self.replica = replica
        self.now_ms = now_ms
        self.made: list[Entry] = []
        self.secrets: dict[int, bytes] = {}
        self.published = epochs.announcements(replica, now_ms)
        self._draw = draw
        network_id = root.network.network_id
        stamps = [stamp, *(one.stamp for one in replica.owned(network_id))]
        # A stamp from the future is of a clock that was wrong; its entries are made again.
        clock = Clock(max((one for one in stamps if not is_future(one, now_ms)), default=0))
        self._writer = Writer(replica, clock, owner=network_id, sign=root.sign, sequence=sequence)

    @property
    def sequence(self) -> int:
        """The highest sequence number given or seen."""
        return self._writer.sequence

    @property
    def stamp(self) -> int:
        """The latest stamp given or seen."""
        return self._writer.clock.last

    # What was left over

    def settle(self, pending: Sequence[Entry], secrets: Mapping[int, bytes]) -> Settled:
        """Look at what earlier commands made and nobody confirmed, and take it up again.

        What was stamped by a clock that was ahead is made anew. An epoch that another operator
        announced meanwhile is dropped whole: its secret was never in use.
        """
        self._writer.sequence = max([self._writer.sequence, *(one.sequence for one in pending)])
        self.secrets.update(secrets)
        displaced = {number for number in secrets if self._displaced(number)}
        for number in displaced:
            del self.secrets[number]
        landed: list[Entry] = []
        resend: list[Entry] = []
        superseded: list[Entry] = []
        again: list[Entry] = []
        for entry in pending:
            if self.replica.by_id(entry.entry_id) is not None:
                landed.append(entry)
            elif entry.bucket == EPOCH and epoch_of(entry.key) in displaced:
                superseded.append(entry)
            elif is_future(entry.stamp, self.now_ms):
                again.append(entry)
            else:
                outcome = self.replica.apply(entry, self.now_ms)
                keep = outcome.verdict is Verdict.ACCEPTED or outcome.reason in TRANSIENT
                (resend if keep else superseded).append(entry)
        for entry in again:
            self._write(entry.bucket, entry.key, None if entry.deleted else entry.value)
        return Settled(tuple(resend), tuple(landed), tuple(superseded), frozenset(displaced))

    def _displaced(self, number: int) -> bool:
        said = self.published.get(number)
        return said is not None and not self._fits(said, self.secrets[number])

    # Epochs

    def known_epoch(self) -> tuple[int, bytes] | None:
        """Return the latest epoch that the network was told of and its secret, if known here.

        None if the network's own file is no older.
        """
        network = self.root.network
        for number in sorted(self.published, reverse=True):
            if number < network.epoch:
                break
            secret = self._secret(self.published[number])
            if secret is not None:
                same = number == network.epoch and secret == network.otp_seed
                return None if same else (number, secret)
        return None

    def epoch_trouble(self, displaced: Collection[int] = ()) -> str | None:
        """Say what is wrong with the network's epochs, so that a new one is needed."""
        if displaced:
            return f"another operator began epoch {min(displaced)} meanwhile"
        network = self.root.network
        own = self.published.get(network.epoch)
        if own is not None and not self._fits(own, network.otp_seed):
            return f"another operator's epoch {network.epoch} took the place of the one made here"
        latest = max(self.published, default=0)
        if latest and self._secret(self.published[latest]) is None:
            return f"the boxes of epoch {latest} do not hold the secret that it announces"
        return None

    def new_epochs(self) -> tuple[int, ...]:
        """Begin a new epoch that leaves behind all revocations no epoch has named yet.

        An announcement names EXCLUDED_MAX of them, so there may be several.
        """
        said = epochs.announcements(self.replica, self.now_ms)
        named = {key for one in said.values() for key in one.excluded}
        revoked = (one.key for one in self.replica.entries(REVOKED, self.now_ms))
        left = sorted(key for key in revoked if key not in named)
        number = max([self.root.network.epoch, *said, *self.secrets])
        begun = []
        for at in range(0, max(len(left), 1), EXCLUDED_MAX):
            chunk = left[at : at + EXCLUDED_MAX]
            number += 1
            if number > EPOCH_MAX:
                raise OperatorError("there are no epochs left", hint="make a new network")
            self._begin(number, chunk)
            begun.append(number)
        return tuple(begun)

    def _begin(self, number: int, excluded: Iterable[str]) -> None:
        secret = self._draw(SEED_SIZE)
        network_id = self.root.network.network_id
        to = [*self.survivors(), self.root.recipient()]
        for key, value in epochs.new_epoch(network_id, number, secret, to, excluded).items():
            self._write(EPOCH, key, value)
        self.secrets[number] = secret

    def survivors(self) -> list[Member]:
        """Return whom a new epoch's secret is sealed to: who is in beyond doubt.

        Whoever is left out by mistake gets it from any member that knows better.
        """
        members = list(self.replica.directory)
        view = claims.grant_view(self.replica, members)
        closed = assigned.closed_grants(self.replica, self.now_ms)
        for_good = assigned.admitted_for_good(self.replica, self.now_ms)
        within: dict[tuple[bytes, int | None], frozenset[bytes]] = {}
        found = []
        for one in sorted(members, key=lambda one: one.node_id):
            if is_visitor(one.labels):
                continue
            grant = one.grant_id, one.grant_count
            if grant not in within:
                within[grant] = claims.admitted(view, *grant)
            new = one.grant_id in closed and one.node_id not in for_good
            if one.node_id in within[grant] and not new:
                found.append(one)
        return found

    def _secret(self, said: Announcement) -> bytes | None:
        """Return the secret that an announcement is about, if this machine can know it."""
        network = self.root.network
        for known in (self.secrets.get(said.epoch), network.otp_seed):
            if known is not None and self._fits(said, known):
                return known
        key = epochs.box_key(said.epoch, network.network_id)
        box = self.replica.get(EPOCH, key, self.now_ms)
        if box is None:
            return None
        return epochs.unseal(
            box.value,
            said,
            network_id=network.network_id,
            node_id=network.network_id,
            wg_private=self.root.box_private(),
        )

    def _fits(self, said: Announcement, secret: bytes) -> bool:
        right = epochs.commitment(self.root.network.network_id, said.epoch, secret)
        return hmac.compare_digest(right, said.commitment)

    # Who is out

    def revoke(
        self,
        *,
        nodes: Iterable[bytes] = (),
        grants: Iterable[bytes] = (),
        reason: str = "",
        epoch: bool = True,
    ) -> tuple[int, ...]:
        """Put nodes and grants out for ever; return the epochs that begin thereby.

        Without ``epoch``, the network's secret stays: for a machine that is in one's own hands.
        One that is out already gets its epoch if it had none. With neither, only an epoch begins.
        """
        value = reason_value(reason)
        nodes, grants = set(nodes), set(grants)
        gone = nodes | {one.node_id for one in self.replica.directory if one.grant_id in grants}
        keys = [revocation_key(NODE_PREFIX, one) for one in sorted(nodes)]
        keys += [revocation_key(GRANT_PREFIX, one) for one in sorted(grants)]
        for key in keys:
            if self.replica.get(REVOKED, key, self.now_ms) is None:
                self._write(REVOKED, key, value)
        begun = self.new_epochs() if epoch and (not keys or self._unnamed(keys)) else ()
        for node in sorted(gone):
            self._take_back(orders.drain_key(node))
            for kind in assigned.ABOUT_NODE:
                self._take_back(assigned.node_key(node, kind))
        return begun

    def _unnamed(self, keys: Iterable[str]) -> bool:
        said = epochs.announcements(self.replica, self.now_ms).values()
        return not set(keys) <= {key for one in said for key in one.excluded}

    def close_grant(self, grant_id: bytes) -> bool:
        """Let nobody new in under a grant; who is in stays in. False if it was closed already."""
        key = assigned.closed_key(grant_id)
        if self.replica.get(ASSIGNED, key, self.now_ms) is not None:
            return False
        for one in self.survivors():
            if one.grant_id == grant_id:
                self.say(assigned.node_key(one.node_id, assigned.ADMITTED), assigned.MARK)
        return self.say(key, assigned.MARK)

    # What is fixed for a node

    def rename(self, member: Member, name: str) -> bool:
        """Name a node. False if it has the name already."""
        value = assigned.name_value(name)
        given = assigned.names(self.replica, self.now_ms)
        for one in self.replica.directory:
            if one.node_id != member.node_id and given.get(one.node_id, one.name) == name:
                raise OperatorError(
                    f"{name} is the name of another node: {one.id_text}",
                    hint="rename that one first, or choose another name",
                )
        if given.get(member.node_id, member.name) == name:
            return False
        return self.say(assigned.node_key(member.node_id, assigned.NAME), value)

    def label(self, member: Member, changes: Mapping[str, str | None]) -> bool:
        """Change labels (None takes one away). False if all are so already."""
        given = assigned.labels(self.replica, self.now_ms)
        present = _without_reserved(assigned.labels_of(member, given))
        wanted = dict(present)
        for name, value in changes.items():
            if value is not None:
                wanted[name] = value
            elif wanted.pop(name, None) is None:
                raise OperatorError(
                    f"the node has no label {name}",
                    hint=f"it has: {', '.join(sorted(present)) or 'none'}",
                )
        said = assigned.labels_value(wanted)
        key = assigned.node_key(member.node_id, assigned.LABELS)
        if wanted == present:
            return False
        if wanted == _without_reserved(member.labels):
            return self._take_back(key)
        return self.say(key, said)

    def fix_address(self, member: Member, address: ipaddress.IPv4Address | None) -> bool:
        """Fix a node's overlay address, or (None) let it find one again. False if it is so."""
        key = assigned.node_key(member.node_id, assigned.ADDRESS)
        if address is None:
            return self._take_back(key)
        host_range = ipaddress.IPv4Network(self.root.network.settings.host_range)
        self._check_address(member, address, host_range)
        return self.say(key, assigned.address_value(address))

    def _check_address(
        self, member: Member, address: ipaddress.IPv4Address, host_range: ipaddress.IPv4Network
    ) -> None:
        kept = api_addresses_kept(self.root.network.settings)
        hint = f"choose one from {host_range[kept + 1]} to {host_range[-2]}"
        if address not in host_range:
            raise OperatorError(
                f"{address} is outside the network's host_range {host_range}", hint=hint
            )
        uses = {0: "the network's own address", -1: "for broadcasts"}
        uses |= dict.fromkeys(range(1, kept + 1), "kept for the API of a cluster")
        for place, use in uses.items():
            if address == host_range[place]:
                raise OperatorError(f"{address} is reserved: {use}", hint=hint)
        view = claims.address_view(self.replica, host_range, self.now_ms)
        self._check_free(member, str(address), address.packed, view)

    def fix_range(self, member: Member, wanted: ipaddress.IPv4Network | None) -> bool:
        """Fix a node's pod range, or (None) let it find one again. False if it is so."""
        key = assigned.node_key(member.node_id, assigned.RANGE)
        if wanted is None:
            return self._take_back(key)
        plan = plan_for(self.root.network.network_id, self.root.network.settings)
        if not carries_pods(member):
            raise OperatorError(
                "the node's grant has the role none: it carries no pods",
                hint="to have it carry some, give the machine a token with another role",
            )
        if not plan.has(wanted):
            raise OperatorError(
                f"{wanted} is no node's range of this network",
                hint=f"choose a /{plan.prefix} of {plan.pod_cidr}, like {plan.numbered(7)}",
            )
        packed = pack(wanted)
        view = range_view(self.replica, plan, self.now_ms)
        self._check_free(member, str(wanted), packed, view)
        return self.say(key, packed)

    def order_drain(self, member: Member, *, drain: bool) -> bool:
        """Say that a node is to have no pods, or that it may. False if it is so."""
        key = orders.drain_key(member.node_id)
        return self.say(key, orders.DRAIN_VALUE) if drain else self._take_back(key)

    def _check_free(self, member: Member, words: str, what: bytes, view: claims.View) -> None:
        """Raise OperatorError if another node has, or was given, this."""
        fixed = next((node for node, one in view.fixed.items() if one == what), None)
        holder = fixed or view.holders().get(what)
        if holder is None or holder == member.node_id:
            return
        given = assigned.names(self.replica, self.now_ms)
        other = self.replica.directory.member(holder)
        name = given.get(holder) or (other.name if other else "a node that is not known here")
        raise OperatorError(
            f"{words} is taken by {name} ({id_text(holder)})",
            hint="choose another, or give that node another one first",
        )

    # Writing

    def say(self, key: str, value: bytes) -> bool:
        """Make a statement in the assigned bucket. False if it stands already."""
        present = self.replica.get(ASSIGNED, key, self.now_ms)
        if present is not None and present.value == value:
            return False
        self._write(ASSIGNED, key, value)
        return True

    def _take_back(self, key: str) -> bool:
        if self.replica.get(ASSIGNED, key, self.now_ms) is None:
            return False
        self._write(ASSIGNED, key, None)
        return True

    def _write(self, bucket: str, key: str, value: bytes | None) -> None:
        """Sign an entry (None: a deletion), try it on the replica, and keep it to be published."""
        if value is None:
            written = self._writer.delete(bucket, key, self.now_ms)
        else:
            written = self._writer.put(bucket, key, value, self.now_ms)
        self.made.append(written.entry)


def reason_value(reason: str) -> bytes:
    """Return the value of a revocation. Raises OperatorError for a reason that is too long."""
    value = codec.encode([reason])
    if len(reason) > REASON_MAX or len(value) > BUCKETS[REVOKED].value_max:
        raise OperatorError(
            f"the reason has {len(reason)} characters ({len(value)} bytes)",
            hint=f"at most {REASON_MAX}; fewer if they are not plain letters",
        )
    return value


def read_reason(value: bytes) -> str:
    """Return the reason in a revocation, made fit for a terminal."""
    try:
        (reason,) = codec.decode(value, tuple[str], limit=BUCKETS[REVOKED].value_max)
    except (FormatError, ValueError):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in reason[:REASON_MAX])


def _without_reserved(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: one for key, one in labels.items() if not key.startswith(assigned.RESERVED_LABELS)}


def is_announcement(entry: Entry) -> bool:
    """Say whether it tells the network of an epoch."""
    return entry.bucket == EPOCH and entry.key.startswith("epoch/")


def epoch_of(key: str) -> int | None:
    """Return the epoch that a key in the epoch bucket is about."""
    parts = key.split("/")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else None
