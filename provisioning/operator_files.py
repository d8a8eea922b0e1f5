"""The operator's side of a network: its settings file and its root key.

A network is a directory, owner only: ``network.json`` (with the discovery seed of the latest epoch
that the network was told of, so mode 0600 too) and ``root.key``, the seed of the root key, sealed
under a passphrase if one was given (argon2id, then XSalsa20-Poly1305: libsodium's secretbox). Who
has root.key can make tokens for the network; it belongs on the operator's machine, never on a node.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from provisioning.errors import FormatError, ProvisioningError
from provisioning.files import FileError, read_small, tighten, write_all
from provisioning.keys import SEED_SIZE, id_text, public_key, random_bytes
from provisioning.names import check_name
from provisioning.network import NetworkInfo
from provisioning.settings import Settings, settings_from

T = TypeVar("T")

NETWORK_FILE, KEY_FILE = "network.json", "root.key"
FILE_FORMAT = 1
_FILE_LIMIT = 64 * 1024
_SALT_SIZE = 16
# What reading a file raises that is JSON, and not what was written (1e999 is infinite).
_DAMAGE = (KeyError, TypeError, ValueError, OverflowError, FormatError)
_OPERATIONS_MAX, _MEMORY_MAX = 16, 1 << 30


class NetworkFilesError(ProvisioningError):
    """A network's files on the operator's machine are not as they should be."""


@dataclass(frozen=True, slots=True)
class PassphraseCost:
    """What one guess at a passphrase costs (argon2id): passes, and bytes of memory."""

    operations: int = 3
    memory: int = 256 << 20


@dataclass(frozen=True, slots=True)
class OperatorNetwork:
    """A network together with the seed of its root key."""

    network: NetworkInfo
    root_seed: bytes = field(repr=False)


def networks_directory() -> Path:
    """Return where networks are kept unless a directory is given."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "skerry" / "networks"


def create_network(
    directory: Path,
    name: str,
    settings: Settings,
    *,
    passphrase: str | None = None,
    cost: PassphraseCost | None = None,
) -> NetworkInfo:
    """Make a root key and a network, and keep both; nothing that exists is overwritten."""
    check_name(name, "network")
    root_seed = random_bytes(SEED_SIZE)
    network = NetworkInfo(name, public_key(root_seed), random_bytes(SEED_SIZE), 0, settings)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for present in (NETWORK_FILE, KEY_FILE):
            if (directory / present).exists():
                raise NetworkFilesError(
                    f"{directory / present} exists already",
                    hint="choose another --dir; a root key is never overwritten",
                )
        directory.chmod(0o700)
        key = _seal(root_seed, passphrase, cost or PassphraseCost())
        write_all(directory, {KEY_FILE: _json(key), NETWORK_FILE: _json(_describe(network))})
    except OSError as error:
        raise NetworkFilesError(f"{directory} cannot hold the network: {error.strerror}") from error
    return network


NO_NETWORK_HINT = (
    "this is for the machine that made the network; to make a new one: skerry network new NAME"
)


def find_network(given: str | None) -> Path:
    """Return the directory of the network meant: a directory, a name, or None for the only one."""
    base = networks_directory()
    if given is not None:
        for directory in (Path(given), base / given):
            if (directory / NETWORK_FILE).is_file():
                return directory
        raise NetworkFilesError(
            f"there is no network in {given!r}, nor of that name in {base}",
            hint=NO_NETWORK_HINT,
        )
    known = sorted(path.parent for path in base.glob(f"*/{NETWORK_FILE}"))
    if len(known) == 1:
        return known[0]
    names = ", ".join(path.name for path in known)
    raise NetworkFilesError(
        f"there are several networks: {names}" if known else f"there is no network in {base}",
        hint="say which with --network" if known else NO_NETWORK_HINT,
    )


def load_network(directory: Path) -> NetworkInfo:
    """Return the network that the directory describes."""
    path = directory / NETWORK_FILE
    raw = _read(path)
    try:
        _expect_format(raw["format"], path)
        network = NetworkInfo(
            str(raw["name"]),
            _unpack(raw["root_key"]),
            _unpack(raw["otp_seed"]),
            int(raw["epoch"]),
            settings_from(_tuples(raw["settings"])),
        )
    except _DAMAGE as error:
        raise NetworkFilesError(f"{path} is damaged", hint="restore it from a backup") from error
    return network


def open_network(directory: Path, ask_passphrase: Callable[[], str]) -> OperatorNetwork:
    """Return network and root seed; the passphrase is asked for only if the key is sealed."""
    network = load_network(directory)
    path = directory / KEY_FILE
    raw = _read(path)
    try:
        _expect_format(raw["format"], path)
        seed = _unpack(raw["seed"]) if "seed" in raw else _unseal(raw, ask_passphrase)
    except _DAMAGE as error:
        raise NetworkFilesError(f"{path} is damaged", hint="restore it from a backup") from error
    if len(seed) != SEED_SIZE or public_key(seed) != network.root_key:
        raise NetworkFilesError(
            f"{path} is not the root key of network {network.name}", hint="restore both files"
        )
    return OperatorNetwork(network, seed)


def save_epoch(directory: Path, epoch: int, otp_seed: bytes) -> NetworkInfo:
    """Keep the network's latest epoch, for tokens to carry; the rest of the file stays."""
    network = replace(load_network(directory), epoch=epoch, otp_seed=otp_seed)
    write_document(directory / NETWORK_FILE, _json(_describe(network)))
    return network


class _Format(msgspec.Struct, frozen=True):
    format: int


def read_document(path: Path, kind: type[T], *, limit: int, hint: str) -> T | None:
    """Return a document of FILE_FORMAT that is kept beside the root key; None if there is none.

    ``hint``: the way out if it is damaged. Raises NetworkFilesError.
    """
    try:
        data = read_small(path, limit)
    except FileNotFoundError:
        return None
    except FileError as error:
        raise NetworkFilesError(str(error), hint=hint) from error
    except OSError as error:
        raise NetworkFilesError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    try:
        _expect_format(msgspec.json.decode(data, type=_Format).format, path)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NetworkFilesError(f"{path} is damaged", hint=hint) from error


def write_document(path: Path, content: bytes, *, after: str = "give the command again") -> None:
    """Write it durably and whole; ``after``: what a person knows or does when there is room.

    Raises NetworkFilesError.
    """
    try:
        write_all(path.parent, {path.name: content})
    except OSError as error:
        raise NetworkFilesError(
            f"{path} cannot be written: {error.strerror}",
            hint=f"make room or set its permissions right, then {after}",
        ) from error


@contextlib.contextmanager
def locked(directory: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep other commands off the network's directory; ``waiting`` is called if one is at work."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkFilesError(
            f"{directory} cannot be opened: {error.strerror}", hint="say which with --network"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _describe(network: NetworkInfo) -> dict[str, Any]:
    return {
        "format": FILE_FORMAT,
        "name": network.name,
        "network_id": id_text(network.network_id),
        "root_key": _pack(network.root_key),
        "otp_seed": _pack(network.otp_seed),
        "epoch": network.epoch,
        "settings": network.settings.changed(),
    }


def _seal(seed: bytes, passphrase: str | None, cost: PassphraseCost) -> dict[str, Any]:
    if passphrase is None:
        return {"format": FILE_FORMAT, "seed": _pack(seed)}
    from nacl.secret import SecretBox

    salt = random_bytes(_SALT_SIZE)
    key = _stretch(passphrase, salt, cost)
    return {
        "format": FILE_FORMAT,
        "kdf": "argon2id",
        "operations": cost.operations,
        "memory": cost.memory,
        "salt": _pack(salt),
        "box": _pack(bytes(SecretBox(key).encrypt(seed))),
    }


def _unseal(raw: dict[str, Any], ask_passphrase: Callable[[], str]) -> bytes:
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    cost = PassphraseCost(int(raw["operations"]), int(raw["memory"]))
    within = 1 <= cost.operations <= _OPERATIONS_MAX and 8192 <= cost.memory <= _MEMORY_MAX
    if raw["kdf"] != "argon2id" or not within:
        raise ValueError("unknown way of sealing")
    salt, box = _unpack(raw["salt"]), _unpack(raw["box"])
    key = _stretch(ask_passphrase(), salt, cost)
    try:
        return SecretBox(key).decrypt(box)
    except CryptoError as error:
        raise NetworkFilesError("the passphrase is wrong, or the root key is damaged") from error


def _stretch(passphrase: str, salt: bytes, cost: PassphraseCost) -> bytes:
    from nacl.pwhash import argon2id

    return argon2id.kdf(
        32, passphrase.encode(), salt, opslimit=cost.operations, memlimit=cost.memory
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_small(path, _FILE_LIMIT)
        tighten(path, 0o600)
        raw = json.loads(data)
    except FileError as error:
        raise NetworkFilesError(str(error), hint="restore it from a backup") from error
    except OSError as error:
        raise NetworkFilesError(
            f"{path} cannot be read: {error.strerror}", hint="say which network with --network"
        ) from error
    except (ValueError, RecursionError) as error:
        raise NetworkFilesError(f"{path} is damaged", hint="restore it from a backup") from error
    if not isinstance(raw, dict):
        raise NetworkFilesError(f"{path} is damaged", hint="restore it from a backup")
    return raw


def _expect_format(found: object, path: Path) -> None:
    if found != FILE_FORMAT:
        raise NetworkFilesError(
            f"{path} has format {found!r}, this Skerry knows format {FILE_FORMAT}",
            hint="use the version of Skerry that made it, or a newer one",
        )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _tuples(settings: object) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise TypeError("settings are no mapping")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def _pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unpack(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
