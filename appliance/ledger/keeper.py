"""What one node does about the secrets in the ledger: opens its own, seals them for those who lack.

A state machine, sans-IO: after any change in the buckets ``secret``, ``member``, ``revoked`` or
``epoch`` (and when :meth:`Keeper.next_timer` is due) call :meth:`Keeper.look`, perform the writes
it returns; they are changes too. What is written ends the reason to write: it comes to rest.

Several could do the same: they take turns (`turns`). Values are held in memory, because a
revocation takes all that a node wrote from every ledger at once, boxes too: whoever holds a value
then takes it over. So let `look` see a stored ledger once before new revocations are let in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from appliance.ledger.directory import NODE_PREFIX, revocation_key
from appliance.ledger.epochs import announcements
from appliance.ledger.limits import Allowance
from appliance.ledger.rules import BUCKETS, REVOKED
from appliance.ledger.secrets import (
    ADOPTED_MAX,
    GENERATION_MAX,
    SECRET,
    AbsentError,
    Boxed,
    RoleError,
    Secret,
    SecretError,
    Shelf,
    Version,
    box_key,
    check_name,
    check_roles,
    make,
    may_read,
    may_write,
    notice_value,
    read_shelves,
    seal,
    unseal,
)
from appliance.ledger.state import Replica
from appliance.ledger.turns import Job, Turns
from provisioning.membership import Member

# How long a version that nobody speaks for any more is waited for where nobody was revoked.
LOST_SECONDS = 60.0
# Boxes of a new version may be on their way when its notice is here already.
GRACE_SECONDS = 1.0
# A member that leaves new versions without end makes others seal: this often and no more.
WRITES_BURST = 256.0
WRITES_PER_SECOND = 8.0
_RULE = BUCKETS[SECRET]
# What an entry takes beside its value, at most.
_AROUND = 320


@dataclass(frozen=True, slots=True)
class Write:
    """Write ``value`` under ``key`` in the bucket ``secret``; None: delete it."""

    key: str
    value: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Info:
    """A secret as it may be told to anybody on the node.

    ``writers``: who says so, the value's own writer first; ``copied``: its own writer is out, and
    those who are left speak for it. ``readable``: this node holds the value that counts;
    ``unreadable_from``: a member left a box for this node that does not hold what was promised.
    ``missing``: members in its roles that have no box yet.
    """

    name: str
    generation: int
    roles: tuple[str, ...]
    put_ms: int
    writers: tuple[bytes, ...]
    copied: bool
    exposed: bool
    readable: bool
    held_generation: int | None
    missing: int
    unreadable_from: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Trail:
    """What was seen of the version that this node goes by; a revocation takes it from the ledger.

    ``readers``: who had a box of it, ``writers``: who spoke for it; ``lost_at``: since when nobody
    does (monotonic seconds).
    """

    version: Version
    readers: set[bytes] = field(default_factory=set)
    writers: set[bytes] = field(default_factory=set)
    lost_at: float | None = None


class Keeper:
    """The secrets of one node. ``mono`` is a monotonic clock in seconds.

    Values are in what :meth:`get` returns and nowhere else that has a repr. ``last_exposed`` is
    what `exposed` said at the last `look`.
    """

    def __init__(self, replica: Replica, *, own: bytes, wg_private: bytes, mono: float) -> None:
        self._replica = replica
        self._network_id = replica.directory.network.network_id
        self._own = own
        self._wg_private = wg_private
        self._held: dict[str, Secret] = {}
        self._trails: dict[str, _Trail] = {}
        self._wrong: dict[str, dict[Boxed, Version]] = {}
        self._met: set[bytes] = set()
        self._turns = Turns(own)
        self._due: float | None = None
        self.last_exposed: frozenset[str] = frozenset()
        self._allowance = Allowance(WRITES_PER_SECOND, WRITES_BURST, WRITES_BURST, mono)

    # Asked by people and programs

    def get(self, name: str) -> Secret:
        """Return a secret that this node holds. Raises AbsentError."""
        found = self._held.get(check_name(name))
        if found is None:
            raise AbsentError(
                f"this node does not hold the secret {name}",
                hint="`skerry secret ls` shows which there are and for which roles; one that was "
                "put just now may take a few seconds",
            )
        return found

    def infos(self, members: Iterable[Member], now_ms: int) -> tuple[Info, ...]:
        """Return what is known of all secrets, by name; those that were removed are left out."""
        everybody = tuple(members)
        found = []
        for name, shelf in read_shelves(self._replica, now_ms).items():
            version = shelf.version
            if version is not None and not version.removed:
                found.append(self._info(name, shelf, version, everybody))
        return tuple(found)

    def exposed(self, now_ms: int) -> frozenset[str]:
        """Return the secrets whose value somebody has who is out: they want a new one."""
        return _exposed(read_shelves(self._replica, now_ms))

    def put(
        self, name: str, value: bytes, roles: Iterable[str], members: Iterable[Member], now_ms: int
    ) -> list[Write]:
        """Return the writes of a secret's next value. Raises SecretError.

        The value is held only once `look` finds it in the ledger.
        """
        check_name(name)
        self._check_writer(name)
        if not self._knows_revocations(now_ms):
            raise SecretError(
                f"{name} was not put: this node has heard of a revocation, but not yet of whom",
                hint="try again in a moment",
            )
        shelf = read_shelves(self._replica, now_ms).get(name, Shelf())
        generation = self._last_generation(name, shelf) + 1
        secret = make(self._network_id, name, value, roles, generation, now_ms)
        writes = [
            Write(box_key(name, one.node_id), seal(self._network_id, secret, one))
            for one in members
            if may_read(one, secret.version.roles)
        ]
        writes.append(Write(name, notice_value(secret.version, exposed=False, copied=False)))
        self._check_room(name, writes)
        return writes

    def remove(self, name: str, now_ms: int) -> list[Write]:
        """Return the writes that end a secret for all. Raises SecretError."""
        check_name(name)
        self._check_writer(name)
        shelf = read_shelves(self._replica, now_ms).get(name, Shelf())
        if shelf.version is None or shelf.version.removed:
            raise AbsentError(
                f"there is no secret {name}", hint="`skerry secret ls` shows which there are"
            )
        generation = min(self._last_generation(name, shelf) + 1, GENERATION_MAX)
        gone = Version(generation, now_ms, b"", check_roles(()))
        writes = [Write(name, notice_value(gone, exposed=False, copied=False))]
        self._check_room(name, writes)
        return writes

    # Fed by changes

    def next_timer(self) -> float | None:
        """Return the monotonic time at which `look` has something to do without a change."""
        return self._due

    def look(
        self,
        members: Iterable[Member],
        now_ms: int,
        mono: float,
        *,
        alive: Collection[bytes] | None = None,
    ) -> list[Write]:
        """Return what to write now.

        ``members``: who is in, this node too; ``alive``: whom one may count on (None: everybody).
        """
        everybody = {one.node_id: one for one in members}
        own = everybody.get(self._own)
        writer = own is not None and may_write(own)
        shelves = read_shelves(self._replica, now_ms)
        self.last_exposed = _exposed(shelves)
        for name in sorted(shelves.keys() | self._trails.keys()):
            shelf = shelves.get(name, Shelf())
            if own is not None and not _is_for(own, shelf):
                self._held.pop(name, None)
                self._trails.pop(name, None)
            else:
                self._learn(name, shelf, mono, writer=writer)
        self._met.update(one.node_id for one in self._replica.directory)
        lost = [one.lost_at for one in self._trails.values() if one.lost_at is not None]
        writes: list[Write] = []
        jobs: list[Job[Write]] = []
        if writer:
            informed = self._knows_revocations(now_ms)
            for name in sorted(shelves.keys() | self._trails.keys()):
                shelf = shelves.get(name, Shelf())
                writes += self._clean(name, shelf, now_ms)
                jobs += self._jobs(name, shelf, everybody if informed else {}, now_ms)
        able = [one.node_id for one in everybody.values() if may_write(one)]
        turns = self._turns.take(jobs, able, mono, alive=alive)
        self._due = self._turns.due
        if not writer and lost:
            self._wake(min(lost) + LOST_SECONDS)
        writes += [one for one in turns if self._has_room(one)]
        return self._paced(writes, mono)

    # Learning

    def _learn(self, name: str, shelf: Shelf, mono: float, *, writer: bool) -> None:
        """Go by the best version that counts for this node, and take note of whom it concerns."""
        trail = self._trails.get(name)
        if trail is not None and shelf.notices(trail.version):
            trail.lost_at = None
        elif trail is not None:
            trail.lost_at = mono if trail.lost_at is None else trail.lost_at
            # Only a writer can take a value over; the others wait a while for one to do so.
            waits = writer or mono < trail.lost_at + LOST_SECONDS
            if not waits or not _plausible(trail.version):
                del self._trails[name]
                self._held.pop(name, None)
        below = self._trails[name].version if name in self._trails else None
        for version in sorted({one.version for one in shelf.said}, reverse=True):
            if below is not None and version <= below:
                break
            if version.removed:
                self._held.pop(name, None)
                self._trails[name] = _Trail(version)
                break
            opened = self._open(name, shelf, version)
            if opened is not None:
                self._held[name] = opened
                self._trails[name] = _Trail(version)
                break
        self._follow(name, shelf)

    def _follow(self, name: str, shelf: Shelf) -> None:
        trail = self._trails.get(name)
        if trail is not None:
            trail.readers |= shelf.boxed(trail.version)
            trail.writers |= {one.writer for one in shelf.notices(trail.version)}
        wrong = self._wrong.get(name, {})
        still = {one: wrong[one] for one in shelf.boxes if one in wrong}
        if still:
            self._wrong[name] = still
        else:
            self._wrong.pop(name, None)

    def _open(self, name: str, shelf: Shelf, version: Version) -> Secret | None:
        wrong = self._wrong.get(name, {})
        for box in shelf.boxes:
            mine = box.node == self._own and box.commitment == version.commitment
            if not mine or wrong.get(box) == version:
                continue
            secret = unseal(
                box, version, name, network_id=self._network_id, wg_private=self._wg_private
            )
            if secret is not None:
                return secret
            self._wrong.setdefault(name, {})[box] = version
        return None

    # Duties

    def _clean(self, name: str, shelf: Shelf, now_ms: int) -> list[Write]:
        """Return the deletions of own entries that are of no use to anybody any more."""
        trail = self._trails.get(name)
        if trail is None or trail.version != shelf.version:
            # Not before this node has seen that what counts now can be opened.
            return []
        version = trail.version
        gone = self._gone(trail, shelf, now_ms) if shelf.exposed(version) else frozenset()
        keys = [name for one in shelf.said if one.writer == self._own and one.version != version]
        keys += [
            box_key(name, one.node)
            for one in shelf.boxes
            if one.writer == self._own
            and (version.removed or one.commitment != version.commitment or one.node in gone)
        ]
        return [Write(key, None) for key in keys]

    def _jobs(
        self, name: str, shelf: Shelf, members: Mapping[bytes, Member], now_ms: int
    ) -> Iterator[Job[Write]]:
        trail = self._trails.get(name)
        if trail is None:
            return
        version = trail.version
        if trail.lost_at is not None:
            if _plausible(version) and (shelf.version is None or shelf.version < version):
                yield self._take_over(name, trail, shelf, now_ms)
            return
        if shelf.version != version or version.removed:
            return
        if not shelf.exposed(version) and self._gone(trail, shelf, now_ms):
            yield self._tell_exposed(name, shelf, version)
        held = self._held.get(name)
        if held is None or held.version != version:
            return
        boxed = shelf.boxed(version)
        for node_id, member in members.items():
            if node_id not in boxed and may_read(member, version.roles):
                make_box = partial(self._box, held, member)
                yield Job(_about(name, node_id, version), make_box, boxed, GRACE_SECONDS)

    def _take_over(self, name: str, trail: _Trail, shelf: Shelf, now_ms: int) -> Job[Write]:
        """Speak for a version whose writers are all gone, so that its boxes count again."""
        version = trail.version
        present = [one for one in trail.writers if self._replica.directory.member(one) is not None]
        out = len(present) < len(trail.writers) or bool(self._gone(trail, shelf, now_ms))
        value = notice_value(version, exposed=out and not version.removed, copied=True)
        return Job(
            _about(name, b"lost", version),
            lambda: Write(name, value),
            trail.readers,
            # A writer that is still there may come back to it: after its clock was put right, say.
            LOST_SECONDS if present else 0.0,
        )

    def _tell_exposed(self, name: str, shelf: Shelf, version: Version) -> Job[Write]:
        notices = shelf.notices(version)
        copied = all(one.copied or one.writer != self._own for one in notices)
        value = notice_value(version, exposed=True, copied=copied)
        first = {one.writer for one in notices}
        return Job(_about(name, b"exposed", version), lambda: Write(name, value), first)

    def _gone(self, trail: _Trail, shelf: Shelf, now_ms: int) -> frozenset[bytes]:
        """Return who had a box of the version and may not read it any more."""
        mine = {one.node for one in shelf.boxes if one.writer == self._own}
        return frozenset(
            one for one in trail.readers if self._is_out(one, trail.version, mine, now_ms)
        )

    def _is_out(
        self, node_id: bytes, version: Version, sealed_here: Collection[bytes], now_ms: int
    ) -> bool:
        member = self._replica.directory.member(node_id)
        if member is not None:
            return not may_read(member, version.roles)
        # No member: out, or one whose certificate has not come yet. Who met it, or sealed for it,
        # had its certificate, and nothing but a revocation takes that away.
        if node_id in self._met or node_id in sealed_here:
            return True
        key = revocation_key(NODE_PREFIX, node_id)
        return self._replica.get(REVOKED, key, now_ms) is not None

    def _knows_revocations(self, now_ms: int) -> bool:
        """Say whether all that the announced epochs leave behind is known here by name."""
        return all(
            self._replica.get(REVOKED, key, now_ms) is not None
            for said in announcements(self._replica, now_ms).values()
            for key in said.excluded
        )

    def _box(self, secret: Secret, member: Member) -> Write:
        value = seal(self._network_id, secret, member)
        return Write(box_key(secret.name, member.node_id), value)

    def _paced(self, writes: list[Write], mono: float) -> list[Write]:
        allowed = [one for one in writes if self._allowance.take(1.0, mono)]
        if len(allowed) < len(writes):
            self._wake(mono + 1.0)
        return allowed

    def _wake(self, at: float) -> None:
        self._due = at if self._due is None else min(self._due, at)

    # Checks

    def _last_generation(self, name: str, shelf: Shelf) -> int:
        trail = self._trails.get(name)
        known = [] if trail is None or not _plausible(trail.version) else [trail.version]
        known += [one.version for one in shelf.said]
        return max((one.generation for one in known), default=0)

    def _check_writer(self, name: str) -> None:
        own = self._replica.directory.member(self._own)
        if own is None or not may_write(own):
            roles = ", ".join(sorted(own.roles)) if own is not None else "none: it is no member"
            raise RoleError(
                f"{name} was not written: secrets are written by members whose grant has the role "
                f"server or auto; this node's roles: {roles}",
                hint="run the command on a server",
            )

    def _check_room(self, name: str, writes: Iterable[Write]) -> None:
        count, size = self._replica.usage(self._own, SECRET)
        for write in writes:
            more = self._cost(write)
            count, size = count + more[0], size + more[1]
        if count > _RULE.entries or size > _RULE.bytes:
            raise SecretError(
                f"{name} was not put: this node would have {count} entries of {_RULE.entries} and "
                f"{size} bytes of {_RULE.bytes} that one member may have for secrets; each member "
                "that may read takes one entry",
                hint="use a shorter value or fewer roles, or write it on another server",
            )

    def _has_room(self, write: Write) -> bool:
        count, size = self._replica.usage(self._own, SECRET)
        more = self._cost(write)
        return count + more[0] <= _RULE.entries and size + more[1] <= _RULE.bytes

    def _cost(self, write: Write) -> tuple[int, int]:
        present = self._replica.slot(SECRET, write.key, self._own)
        size = len(write.value or b"") + _AROUND
        return (1, size) if present is None else (0, max(size - present.size, 0))

    def _info(self, name: str, shelf: Shelf, version: Version, members: Collection[Member]) -> Info:
        held = self._held.get(name)
        notices = shelf.notices(version)
        boxed = shelf.boxed(version)
        return Info(
            name,
            version.generation,
            version.roles,
            version.put_ms,
            tuple(one.writer for one in notices),
            copied=all(one.copied for one in notices),
            exposed=shelf.exposed(version),
            held_generation=held.version.generation if held else None,
            readable=held is not None and held.version == version,
            missing=sum(
                one.node_id not in boxed and may_read(one, version.roles) for one in members
            ),
            unreadable_from=tuple(sorted({one.writer for one in self._wrong.get(name, ())})),
        )


def _exposed(shelves: Mapping[str, Shelf]) -> frozenset[str]:
    return frozenset(
        name
        for name, shelf in shelves.items()
        if shelf.version is not None and not shelf.version.removed and shelf.exposed(shelf.version)
    )


def _is_for(member: Member, shelf: Shelf) -> bool:
    version = shelf.version
    return version is None or version.removed or may_read(member, version.roles)


def _plausible(version: Version) -> bool:
    """Say whether a version can have come about by writing; what is not is taken over by nobody."""
    return version.generation <= ADOPTED_MAX


def _about(name: str, what: bytes, version: Version) -> bytes:
    return name.encode() + b"\0" + what + version.commitment
