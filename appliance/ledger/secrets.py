"""Sealed secrets: values in the ledger that only members with a role can read.

Two kinds of entries in the bucket ``secret`` (docs/ledger.md, "Secrets"). Under ``NAME`` a writer
says in the open which value counts: generation, roles, and a commitment to the value (`Notice`).
Under ``NAME/NODEID`` lies the value, sealed to that node's X25519 key (`Box`). A box counts for the
notice whose commitment its content bears out and for nothing else: not under another name, not for
another node, network or generation, and nobody can give two readers two values of one notice.
Which notice counts is a function of the open part alone, so all members agree, readers or not.
`keeper` decides what a node writes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import nacl.exceptions
from nacl.public import PrivateKey, PublicKey, SealedBox

from appliance.ledger.assigned import read_id
from appliance.ledger.entry import Entry
from appliance.ledger.errors import LedgerError
from appliance.ledger.hlc import MS_MAX
from appliance.ledger.rules import BUCKETS
from appliance.ledger.state import Replica
from provisioning import codec
from provisioning.errors import FormatError
from provisioning.keys import id_text, random_bytes
from provisioning.membership import Member

SECRET = "secret"  # noqa: S105 - the bucket's name
VALUE_MAX = 3072
NAME_MAX = 64
SALT_SIZE = 32
# What one step adds is one; a member that leaves a huge number must not end a name for good:
# the survivors of such a member take nothing over beyond ADOPTED_MAX.
ADOPTED_MAX = 2**20
GENERATION_MAX = 2**21
# Whom a secret can be for. `auto` is no role of a secret: who holds it may become either.
ROLES = frozenset({"server", "agent", "none"})
_AUTO = frozenset({"server", "agent"})
_FORMAT = 1
_ENTRY_MAX = BUCKETS[SECRET].value_max
# A value fills the next of these sizes: what its box tells is which.
_PADDED = (64, 256, 1024, 2048, VALUE_MAX + 1)
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", re.ASCII)
_LABEL = b"skerry secret v1\0"


class SecretError(LedgerError):
    """A secret that cannot be written or read; the message never holds its value."""


class AbsentError(SecretError):
    """There is no such secret, or none that this node can read."""


class RoleError(SecretError):
    """This node's grant does not let it write secrets."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """One value of a secret, told apart without the value; the highest counts.

    ``put_ms`` is what the writer's clock said. Without a commitment the secret was removed.
    """

    generation: int
    put_ms: int
    commitment: bytes
    roles: tuple[str, ...]

    @property
    def removed(self) -> bool:
        """Whether it says that there is no such secret any more."""
        return not self.commitment


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret whose value this node holds."""

    name: str
    version: Version
    salt: bytes = field(repr=False)
    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Said:
    """One writer's notice. ``copied``: the value is not its own, it only says so anew.

    ``exposed``: one who may not read the secret (any more) has had it.
    """

    writer: bytes
    version: Version
    exposed: bool
    copied: bool


@dataclass(frozen=True, slots=True)
class Boxed:
    """One writer's box for one node; ``content`` is sealed."""

    writer: bytes
    node: bytes
    commitment: bytes
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Shelf:
    """All that the ledger has of one name."""

    said: tuple[Said, ...] = ()
    boxes: tuple[Boxed, ...] = ()

    @property
    def version(self) -> Version | None:
        """The version that counts."""
        return max((one.version for one in self.said), default=None)

    def notices(self, version: Version) -> tuple[Said, ...]:
        """Return who says that version, its first writer before those who copied it."""
        found = (one for one in self.said if one.version == version)
        return tuple(sorted(found, key=lambda one: (one.copied, one.writer)))

    def exposed(self, version: Version) -> bool:
        """Say whether anybody knows that the version's value was seen by one who is out."""
        return any(one.exposed for one in self.notices(version))

    def boxed(self, version: Version) -> frozenset[bytes]:
        """Return the nodes that there is a box of that version for."""
        return frozenset(one.node for one in self.boxes if one.commitment == version.commitment)


# Who


def may_write(member: Member) -> bool:
    """Say whether the ledger takes secrets from a member."""
    return bool(BUCKETS[SECRET].roles & member.roles)


def may_read(member: Member, roles: Iterable[str]) -> bool:
    """Say whether a secret for ``roles`` is for a member.

    A member with `auto` may become server or agent, by its own decision: what its grant permits
    is not held back from it. Who may write may always read: it has to seal the value for others.
    """
    held = member.roles | _AUTO if "auto" in member.roles else member.roles
    return may_write(member) or not held.isdisjoint(roles)


def check_name(name: str) -> str:
    """Return the name, or raise SecretError saying what names look like."""
    if not _NAME.fullmatch(name):
        raise SecretError(
            f"{name[:80]!r} cannot be the name of a secret",
            hint=f"use 1 to {NAME_MAX} of a-z 0-9 . _ -, beginning and ending with a-z or 0-9",
        )
    return name


def check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Return the roles as they are written, servers always among them, or raise SecretError."""
    found = {*roles, "server"}
    if unknown := found - ROLES:
        raise SecretError(
            f"a secret cannot be for the role {min(unknown)[:40]!r}",
            hint=f"choose of {', '.join(sorted(ROLES))}; members whose grant says `auto` count as "
            "server and agent",
        )
    return tuple(sorted(found))


# Values


def make(
    network_id: bytes, name: str, value: bytes, roles: Iterable[str], generation: int, put_ms: int
) -> Secret:
    """Return a new version of a secret. Raises SecretError for what cannot be one."""
    if len(value) > VALUE_MAX:
        raise SecretError(
            f"the value of {check_name(name)} has {len(value)} bytes, a secret holds {VALUE_MAX}",
            hint="keep a key in the ledger, and what it opens elsewhere",
        )
    if not 0 < generation <= GENERATION_MAX:
        raise SecretError(
            f"{name} has come to generation {generation - 1}, there is none after it",
            hint="some member left a number that no one reaches by writing: `skerry secret ls` "
            "says who; revoke it, or use another name",
        )
    salt, said = random_bytes(SALT_SIZE), check_roles(roles)
    bare = Version(generation, put_ms, b"", said)
    version = Version(
        generation, put_ms, _commitment(network_id, check_name(name), bare, salt, value), said
    )
    return Secret(name, version, salt, value)


class _Content(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is sealed: all that binds the value to its place, then the padded value."""

    network_id: bytes
    name: str
    node_id: bytes
    generation: int
    put_ms: int
    roles: tuple[str, ...]
    salt: bytes
    padded: bytes


def seal(network_id: bytes, secret: Secret, member: Member) -> bytes:
    """Return the value of the entry `box_key` that ``member`` alone can open."""
    version = secret.version
    content = _Content(
        network_id,
        secret.name,
        member.node_id,
        version.generation,
        version.put_ms,
        version.roles,
        secret.salt,
        _pad(secret.value),
    )
    sealed = SealedBox(PublicKey(member.wg_key)).encrypt(codec.encode(content))
    return codec.encode(_Box(_FORMAT, version.commitment, sealed))


def unseal(
    box: Boxed, version: Version, name: str, *, network_id: bytes, wg_private: bytes
) -> Secret | None:
    """Return what a box holds if it is what ``version`` promised to its node, else None."""
    try:
        opened = SealedBox(PrivateKey(wg_private)).decrypt(box.content)
        content = codec.decode(opened, _Content, limit=_ENTRY_MAX)
        value = _unpad(content.padded)
    except (nacl.exceptions.CryptoError, FormatError, ValueError, TypeError):
        return None
    bound = content.network_id, content.name, content.node_id
    if bound != (network_id, name, box.node) or len(content.salt) != SALT_SIZE:
        return None
    said = Version(content.generation, content.put_ms, version.commitment, content.roles)
    right = _commitment(network_id, name, said, content.salt, value)
    if said != version or not hmac.compare_digest(right, version.commitment):
        return None
    return Secret(name, version, content.salt, value)


def _commitment(network_id: bytes, name: str, version: Version, salt: bytes, value: bytes) -> bytes:
    about = (network_id, name, version.generation, version.put_ms, version.roles, value)
    return hmac.digest(salt, _LABEL + codec.encode(about), "sha256")


def _pad(value: bytes) -> bytes:
    size = next(one for one in _PADDED if len(value) < one)
    return (value + b"\x80").ljust(size, b"\0")


def _unpad(padded: bytes) -> bytes:
    value = padded.rpartition(b"\x80")[0]
    if len(value) > VALUE_MAX or _pad(value) != padded:
        raise ValueError("not padded as a secret")
    return value


# In the ledger


class _Notice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The value under NAME; a removed secret has an empty commitment."""

    format: int
    generation: int
    put_ms: int
    commitment: bytes
    roles: tuple[str, ...]
    exposed: bool
    copied: bool


class _Box(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The value under NAME/NODEID."""

    format: int
    commitment: bytes
    sealed: bytes


def box_key(name: str, node_id: bytes) -> str:
    """Return the key of a node's box."""
    return f"{name}/{id_text(node_id)}"


def notice_value(version: Version, *, exposed: bool, copied: bool) -> bytes:
    """Return the value of the entry under the secret's name."""
    return codec.encode(
        _Notice(
            _FORMAT,
            version.generation,
            version.put_ms,
            version.commitment,
            version.roles,
            exposed,
            copied,
        )
    )


def read_shelves(replica: Replica, now_ms: int) -> Mapping[str, Shelf]:
    """Return all secrets in the ledger by name; what is malformed counts for nothing."""
    said: dict[str, list[Said]] = {}
    boxes: dict[str, list[Boxed]] = {}
    for entry in replica.versions(SECRET, now_ms):
        name, slash, node = entry.key.partition("/")
        if not _NAME.fullmatch(name):
            continue
        if slash:
            boxes.setdefault(name, []).extend(_read_box(entry, node))
        else:
            said.setdefault(name, []).extend(_read_notice(entry))
    return {
        name: Shelf(tuple(said.get(name, ())), tuple(boxes.get(name, ())))
        for name in sorted(said.keys() | boxes.keys())
    }


def _read_notice(entry: Entry) -> Iterator[Said]:
    try:
        one = codec.decode(entry.value, _Notice, limit=_ENTRY_MAX)
        roles = check_roles(one.roles)
    except (FormatError, SecretError):
        return
    right = (
        one.format == _FORMAT
        and 0 < one.generation <= GENERATION_MAX
        and 0 <= one.put_ms <= MS_MAX
        and len(one.commitment) in {0, hashlib.sha256().digest_size}
        and one.roles == roles
    )
    if right:
        version = Version(one.generation, one.put_ms, one.commitment, roles)
        yield Said(entry.owner, version, one.exposed, one.copied)


def _read_box(entry: Entry, node: str) -> Iterator[Boxed]:
    node_id = read_id(node)
    try:
        one = codec.decode(entry.value, _Box, limit=_ENTRY_MAX)
    except FormatError:
        return
    if node_id is not None and one.format == _FORMAT:
        yield Boxed(entry.owner, node_id, one.commitment, one.sealed)
