"""A node's identity: its own keys, its certificate and its network, kept in two copies.

Files, owner only: ``identity.bin`` and ``identity.bak``, the same bytes (token-format.md,
"Identity file"). The grant's private key is not among them: who steals a node's disk has that
node, and no way to make another.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import struct
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from provisioning import codec
from provisioning.errors import FormatError, ProvisioningError
from provisioning.files import FileError, read_small, sync_directory, tighten, write_all
from provisioning.grant import read_grant
from provisioning.keys import (
    SEED_SIZE,
    Context,
    id_text,
    public_key,
    random_bytes,
    sign,
    wireguard_public_key,
)
from provisioning.membership import (
    CERTIFICATE_LIMIT,
    CertificateError,
    CertificateRecord,
    Member,
    make_certificate,
    node_id,
    verify_certificate,
)
from provisioning.names import check_name
from provisioning.network import NetworkInfo, NetworkRecord, record_of
from provisioning.settings import SettingsError
from provisioning.token import Token

log = logging.getLogger(__name__)

FILE_VERSION = 1
FILE_LIMIT = 16 * 1024
FIRST, SECOND = "identity.bin", "identity.bak"
_MAGIC = b"skerry identity\0"
_HEADER = struct.Struct(">16sHI")
_DIGEST_SIZE = 32


class IdentityError(ProvisioningError):
    """An identity that cannot be made, kept or read."""


class IdentityRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The payload of an identity file."""

    node_seed: bytes
    wg_private: bytes
    certificate: bytes
    network: NetworkRecord


@dataclass(frozen=True, slots=True)
class Identity:
    """A node that was signed into its network; the keys in it never leave the node.

    ``time_floor``: Unix seconds; a clock that shows less is wrong (the token was made then).
    """

    node_id: bytes
    name: str
    certificate: bytes
    network: NetworkInfo
    time_floor: int
    wg_private: bytes = field(repr=False)
    _node_seed: bytes = field(repr=False)
    _member: Member = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature that `Member.verify` of any peer accepts for ``data``.

        It covers a context prefix: it is no signature of a certificate, whatever ``data`` is.
        """
        return sign(Context.MESSAGE, self._node_seed, data)

    def member(self) -> Member:
        """Return what peers learn from this node's certificate."""
        return self._member

    @property
    def id_text(self) -> str:
        """The node id as people see it."""
        return id_text(self.node_id)


def new_identity(token: Token, *, name: str | None, now: float) -> IdentityRecord:
    """Return the record of a new node that signs itself in with the token's grant.

    Without a name it is ``skerry-`` and the first six characters of its id. Raises TokenError
    for a grant that has expired at ``now``, ProvisioningError for an impossible name.
    """
    token.check_time(now)
    node_seed, wg_private = random_bytes(SEED_SIZE), random_bytes(32)
    own_id = node_id(public_key(node_seed))
    certificate = make_certificate(
        token.network,
        token.grant,
        token.grant_seed,
        node_seed=node_seed,
        wg_key=wireguard_public_key(wg_private),
        name=check_name(name or f"skerry-{id_text(own_id)[:6]}", "node"),
        issued=max(int(now), token.time_floor),
    )
    return IdentityRecord(node_seed, wg_private, certificate, record_of(token.network))


def write_identity(record: IdentityRecord) -> bytes:
    """Return the bytes of an identity file."""
    payload = codec.encode(record)
    blob = _HEADER.pack(_MAGIC, FILE_VERSION, len(payload)) + payload
    return blob + hashlib.sha256(blob).digest()


def read_identity(data: bytes) -> Identity:
    """Return the identity that a file's bytes hold; all of it is verified anew.

    Raises FormatError, or IdentityError for an intact file of a newer version.
    """
    if len(data) < _HEADER.size + _DIGEST_SIZE or len(data) > FILE_LIMIT:
        raise FormatError(f"it has {len(data)} bytes")
    magic, version, length = _HEADER.unpack_from(data)
    content, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if magic != _MAGIC or hashlib.sha256(content).digest() != digest:
        raise FormatError("its checksum is wrong")
    if version != FILE_VERSION:
        raise IdentityError(
            f"the identity has format {version}, this image reads format {FILE_VERSION}",
            hint="boot the other slot or update this node; the identity is kept as it is",
        )
    payload = content[_HEADER.size :]
    if length != len(payload):
        raise FormatError("its length is wrong")
    record = codec.decode(payload, IdentityRecord, limit=FILE_LIMIT)
    try:
        return _identity(record)
    except (CertificateError, SettingsError) as error:
        raise FormatError(str(error)) from error


def _identity(record: IdentityRecord) -> Identity:
    network = record.network.info(tolerate_unknown_settings=True)
    member = verify_certificate(record.certificate, network=network, now=0, admitted=lambda _: True)
    if len(record.node_seed) != SEED_SIZE or len(record.wg_private) != SEED_SIZE:
        raise FormatError("a key has a wrong size")
    own = public_key(record.node_seed), wireguard_public_key(record.wg_private)
    if own != (member.node_key, member.wg_key):
        raise FormatError("its keys are not those of its certificate")
    certificate = codec.decode(record.certificate, CertificateRecord, limit=CERTIFICATE_LIMIT)
    return Identity(
        node_id=member.node_id,
        name=member.name,
        certificate=record.certificate,
        network=network,
        # Not the certificate's: what a clock that was ahead put there would never be put right.
        time_floor=read_grant(certificate.grant).issued,
        wg_private=record.wg_private,
        _node_seed=record.node_seed,
        _member=member,
    )


class IdentityStore:
    """The identity on the data partition.

    ``notices`` tells, in plain words, what the last call had to repair.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self.notices: list[str] = []

    def load(self) -> Identity | None:
        """Return the identity; None if this node was never provisioned.

        A damaged, missing or unreadable copy is repaired from the other. If no copy is good, they
        are kept aside and IdentityError says what is lost; the next load then returns None. If
        the system will not let one be read, IdentityError says so and nothing is touched.
        """
        self.notices.clear()
        found: dict[str, Identity] = {}
        raw: dict[str, bytes] = {}
        damage: dict[str, str] = {}
        refused: dict[str, OSError] = {}
        self._tighten()
        for name in (FIRST, SECOND):
            try:
                raw[name] = read_small(self.directory / name, FILE_LIMIT)
                found[name] = read_identity(raw[name])
            except FileNotFoundError:
                continue
            except (FormatError, FileError) as error:
                damage[name] = str(error)
            except OSError as error:
                # A bad block under one copy is what the other is for.
                damage[name] = f"cannot be read: {error.strerror}"
                refused[name] = error
        if found:
            return self._repaired(found, raw, damage)
        if refused:
            name, cause = next(iter(refused.items()))
            raise self._unreadable(name, cause) from cause
        if damage:
            raise self._all_lost(damage)
        return None

    def create(self, token: Token, *, name: str | None, now: float) -> Identity:
        """Make this node's keys, sign it in with the token, and keep the identity.

        Raises TokenError, ProvisioningError (name), or IdentityError when the node has an
        identity already or cannot keep one; then nothing half-written is left.
        """
        if present := self.load():
            raise IdentityError(
                f"this node already is {present.name} of network {present.network.name}",
                hint="to move it to another network, erase its data partition first",
            )
        blob = write_identity(new_identity(token, name=name, now=now))
        identity = read_identity(blob)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            write_all(self.directory, {SECOND: blob, FIRST: blob})
        except OSError as error:
            raise self._unwritable(error) from error
        return identity

    def _repaired(
        self, found: dict[str, Identity], raw: dict[str, bytes], damage: dict[str, str]
    ) -> Identity:
        good = FIRST if FIRST in found else SECOND
        other = SECOND if good == FIRST else FIRST
        if raw.get(other) == raw[good]:
            return found[good]
        if other in found:
            # Two good copies differ after a power cut between two renames: the first one counts.
            reason = "holds another state"
        else:
            reason = f"is damaged ({damage[other]})" if other in damage else "is missing"
        self._say(f"{self.directory / other} {reason}; it was restored from {good}")
        try:
            if other in damage:
                self._set_aside(other)
            write_all(self.directory, {other: raw[good]})
        except OSError as error:
            self._say(f"{self.directory / other} could not be restored: {error.strerror}")
        return found[good]

    def _all_lost(self, damage: dict[str, str]) -> IdentityError:
        kept = []
        for name in damage:
            try:
                kept.append(self._set_aside(name))
            except OSError as error:
                kept.append(f"{name} (not renamed: {error.strerror})")
        reasons = "; ".join(f"{name}: {reason}" for name, reason in damage.items())
        return IdentityError(
            f"no copy of this node's identity in {self.directory} is readable ({reasons}). Lost "
            "are its keys, its certificate and its place in the network (name and overlay "
            f"address); the damaged files are kept as {', '.join(kept)}",
            hint="give the node a token again: it joins as a new node; revoke the old one",
        )

    def _set_aside(self, name: str) -> str:
        number = 1
        while (aside := self.directory / f"{name}.damaged-{number}").exists():
            number += 1
        (self.directory / name).rename(aside)
        sync_directory(self.directory)
        return aside.name

    def _tighten(self) -> None:
        for path, mode in (
            (self.directory, 0o700),
            (self.directory / FIRST, 0o600),
            (self.directory / SECOND, 0o600),
        ):
            try:
                if not path.is_symlink() and tighten(path, mode):
                    self._say(f"others could get at {path}; its permissions were tightened")
            except FileNotFoundError:
                continue
            except OSError as error:
                self._say(f"the permissions of {path} cannot be tightened: {error.strerror}")

    def _say(self, message: str) -> None:
        self.notices.append(message)
        log.warning(message)

    def _unreadable(self, name: str, error: OSError) -> IdentityError:
        return IdentityError(
            f"{self.directory / name} cannot be read: {error.strerror}",
            hint="check the data partition (journalctl -k) and that it belongs to user skerry",
        )

    def _unwritable(self, error: OSError) -> IdentityError:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        return IdentityError(
            f"the identity cannot be kept in {self.directory}: {error.strerror}",
            hint="free some space on the data partition; the node then tries again"
            if full
            else "check that the data partition is mounted, writable and of user skerry",
        )
