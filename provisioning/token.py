"""The token: what a person gives a node. Exact bytes: docs/token-format.md.

A token is a bearer secret: who has it may join as its grant says. It is not a master key: it
cannot make grants, and what it admitted can be revoked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from provisioning import codec
from provisioning.errors import FormatError, ProvisioningError
from provisioning.grant import Grant, issue, read_grant
from provisioning.keys import SEED_SIZE, public_key, random_bytes
from provisioning.network import NetworkInfo, NetworkRecord, record_of
from provisioning.settings import SettingsError, UnknownSettingError

FORMAT_VERSION = 1
# Text of any size beyond this is refused unread; a payload of this size still fits one QR code.
TEXT_LIMIT = 16 * 1024
PAYLOAD_LIMIT = 2100
_CHECKSUM_SIZE = 4
_LENGTH = struct.Struct(">H")
_PREFIX = re.compile(r"SKERRY([0-9]{1,4})(.*)", re.ASCII)
# What chat programs and editors make of "-" and of nothing.
_NOISE = dict.fromkeys(
    map(ord, "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u200b\u2060\ufeff'\"`")
)
_AGAIN = "copy the whole token again, from SKERRY to its last character"


class TokenFault(Enum):
    """What is the matter with a token."""

    EMPTY = "empty"
    FOREIGN = "not a token"
    OVERSIZED = "oversized"
    TRUNCATED = "cut short"
    DAMAGED = "damaged"
    NEWER_VERSION = "newer format"
    OLDER_VERSION = "older format"
    STRUCTURE = "wrong structure"
    FORGED_GRANT = "forged grant"
    EXPIRED = "expired"


class TokenError(ProvisioningError):
    """A token that cannot be used, with its ``fault``; the message never quotes the token."""

    def __init__(self, fault: TokenFault, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.fault = fault


class TokenRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The payload of a token."""

    network: NetworkRecord
    grant_seed: bytes
    grant: bytes


@dataclass(frozen=True, slots=True)
class Token:
    """A network and a grant of it with the grant's private seed. Only whole, valid ones exist."""

    network: NetworkInfo
    grant: Grant
    grant_seed: bytes = field(repr=False)

    @classmethod
    def parse(cls, given: str | bytes) -> Token:
        """Return the token that the text holds, whatever its case, line breaks and dashes.

        Raises TokenError; whether the grant has expired is not judged (see `check_time`).
        """
        version, payload = _unwrap(_compact(given))
        if version != FORMAT_VERSION:
            raise _wrong_version(version)
        try:
            record = codec.decode(payload, TokenRecord, limit=PAYLOAD_LIMIT)
            network = record.network.info()
            grant = read_grant(record.grant)
        except UnknownSettingError as error:
            raise TokenError(
                TokenFault.NEWER_VERSION,
                f"the token is newer than this image: {error}",
                hint=str(error.hint),
            ) from error
        except (FormatError, SettingsError) as error:
            raise TokenError(
                TokenFault.STRUCTURE,
                f"the token's content is wrong: {error}",
                hint="make a new token with `skerry token new`",
            ) from error
        return cls._checked(network, grant, record.grant_seed)

    @classmethod
    def _checked(cls, network: NetworkInfo, grant: Grant, seed: bytes) -> Token:
        if not grant.signed_by(network.root_key):
            raise TokenError(
                TokenFault.FORGED_GRANT,
                "the token's grant is not signed by the root key of its network",
                hint="do not use this token; ask for one made by `skerry token new`",
            )
        if len(seed) != SEED_SIZE or public_key(seed) != grant.key:
            raise TokenError(
                TokenFault.STRUCTURE,
                "the token's key is not the one that its grant names",
                hint="make a new token with `skerry token new`",
            )
        return cls(network, grant, seed)

    def text(self) -> str:
        """Return the token in its one canonical spelling: one line, fit for a QR code."""
        payload = codec.encode(
            TokenRecord(record_of(self.network), self.grant_seed, self.grant.record)
        )
        if len(payload) > PAYLOAD_LIMIT:
            raise TokenError(
                TokenFault.OVERSIZED,
                f"the token would have {len(payload)} bytes, at most {PAYLOAD_LIMIT} are allowed",
                hint="use fewer labels or peers",
            )
        return wrap(FORMAT_VERSION, payload)

    @property
    def time_floor(self) -> int:
        """Unix seconds when it was made: a clock that shows less is wrong."""
        return self.grant.issued

    def check_time(self, now: float) -> None:
        """Raise TokenError if its grant lets nobody in any more at ``now`` (Unix seconds)."""
        expires = self.grant.expires
        if expires is not None and self.grant.expired(now):
            raise TokenError(
                TokenFault.EXPIRED,
                f"the token expired at {_clock(expires)}; this clock says {_clock(now)}",
                hint="make a new one with `skerry token new`, or set the clock if it is wrong",
            )


def make_token(
    network: NetworkInfo,
    root_seed: bytes,
    *,
    now: float,
    roles: frozenset[str] = frozenset({"auto"}),
    labels: Mapping[str, str] | None = None,
    expires: int | None = None,
    count: int | None = None,
    founder: bool = False,
    grant_seed: bytes | None = None,
) -> Token:
    """Return a new token of a network, its grant signed with the root key's seed.

    ``grant_seed`` is for test vectors; a fresh one is made otherwise. Raises FormatError.
    """
    seed = grant_seed if grant_seed is not None else random_bytes(SEED_SIZE)
    grant = issue(
        root_seed,
        public_key(seed),
        roles=roles,
        labels=labels or {},
        issued=int(now),
        expires=expires,
        count=count,
        founder=founder,
    )
    if not grant.signed_by(network.root_key):
        raise FormatError("this root key is not that of the network")
    return Token(network, grant, seed)


def wrap(version: int, payload: bytes) -> str:
    """Return the text of a payload: the outer form, the same for all format versions."""
    prefix = f"SKERRY{version}-"
    framed = _LENGTH.pack(len(payload)) + payload
    framed += _checksum(prefix, framed)
    return prefix + base64.b32encode(framed).decode().rstrip("=")


def _checksum(prefix: str, framed: bytes) -> bytes:
    return hashlib.sha256(prefix.encode() + framed).digest()[:_CHECKSUM_SIZE]


def _compact(given: str | bytes) -> str:
    """Return the characters that matter, upper case."""
    if len(given) > TEXT_LIMIT:
        raise TokenError(
            TokenFault.OVERSIZED,
            f"this is no token: it has more than {TEXT_LIMIT} characters",
            hint="give the token only, or a file that holds nothing else",
        )
    if isinstance(given, bytes):
        utf16 = given[:2] in {b"\xff\xfe", b"\xfe\xff"}
        given = given.decode("utf-16" if utf16 else "utf-8", errors="replace")
    compact = "".join(given.translate(_NOISE).split()).rstrip("=\0")
    if not compact:
        raise TokenError(
            TokenFault.EMPTY, "the token is empty", hint="make one with `skerry token new`"
        )
    return compact.upper() if compact.isascii() else compact


def _unwrap(compact: str) -> tuple[int, bytes]:
    """Return format version and payload of the outer form, checked against damage."""
    match = _PREFIX.fullmatch(compact)
    if not match:
        raise TokenError(
            TokenFault.FOREIGN,
            "this is not a Skerry token",
            hint="a token begins with SKERRY1-; make one with `skerry token new`",
        )
    version, body = int(match[1]), match[2]
    try:
        framed = base64.b32decode(body + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):
        framed = None
    if framed is None:
        raise _damaged(body)
    if len(framed) < _LENGTH.size + _CHECKSUM_SIZE:
        raise _truncated()
    content, checksum = framed[:-_CHECKSUM_SIZE], framed[-_CHECKSUM_SIZE:]
    payload = content[_LENGTH.size :]
    (length,) = _LENGTH.unpack_from(content)
    spelled = base64.b32encode(framed).decode().rstrip("=")
    if checksum != _checksum(f"SKERRY{version}-", content) or spelled != body:
        raise _truncated() if length > len(payload) else _damaged(body)
    if length != len(payload):
        raise _damaged(body)
    return version, payload


def _truncated() -> TokenError:
    return TokenError(
        TokenFault.TRUNCATED, "the token is cut short: its end is missing", hint=_AGAIN
    )


def _damaged(body: str) -> TokenError:
    strange = sorted({letter for letter in body if not re.match("[A-Z2-7]", letter)})
    if strange:
        message = f"the token is damaged: no token contains {strange[0]!r}"
    elif len(body) % 8 in {1, 3, 6}:
        return _truncated()
    else:
        message = "the token is damaged: some of its characters are wrong"
    return TokenError(TokenFault.DAMAGED, message, hint=_AGAIN)


def _wrong_version(version: int) -> TokenError:
    if version > FORMAT_VERSION:
        return TokenError(
            TokenFault.NEWER_VERSION,
            f"the token has format {version}, this node's image reads format {FORMAT_VERSION}: "
            "the image is older than the token",
            hint="update the node's image, or make the token with the version that it runs",
        )
    return TokenError(
        TokenFault.OLDER_VERSION,
        f"the token has format {version}, which is no longer read (format {FORMAT_VERSION} is)",
        hint="make a new token with `skerry token new`",
    )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(0, min(seconds, 2**37))))
