"""What every node of a network knows about it."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from provisioning.errors import FormatError
from provisioning.keys import KEY_SIZE, SEED_SIZE, short_hash
from provisioning.names import is_name
from provisioning.settings import Settings, Value, settings_from, unknown_settings

_ID_LABEL = b"skerry network v1"
EPOCH_MAX = 2**32 - 1


def network_id(root_key: bytes) -> bytes:
    """Return the 16-byte id of the network whose root key this is."""
    return short_hash(_ID_LABEL, root_key)


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """A network: its root key is its identity, name and settings are only what it is called.

    ``otp_seed`` is the secret of ``epoch`` from which discovery names and sealing keys derive.
    """

    name: str
    root_key: bytes
    otp_seed: bytes = field(repr=False)
    epoch: int = 0
    settings: Settings = field(default_factory=Settings)
    network_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Derive the id; refuse what cannot be."""
        if not is_name(self.name):
            raise FormatError("the network's name is not a name")
        if len(self.root_key) != KEY_SIZE or len(self.otp_seed) != SEED_SIZE:
            raise FormatError("a key of the network has a wrong size")
        if not 0 <= self.epoch <= EPOCH_MAX:
            raise FormatError("the network's epoch is out of range")
        object.__setattr__(self, "network_id", network_id(self.root_key))


class NetworkRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The form of a NetworkInfo inside tokens and identity files (token-format.md)."""

    name: str
    root_key: bytes
    otp_seed: bytes
    epoch: int
    settings: dict[str, Value]

    def info(self, *, tolerate_unknown_settings: bool = False) -> NetworkInfo:
        """Return what the record says. Raises FormatError or SettingsError.

        A token is read strictly. A stored identity may have been written by a newer version that
        was rolled back: then settings that only the newer one knows are left out.
        """
        unknown = unknown_settings(self.settings) if tolerate_unknown_settings else ()
        known = {name: value for name, value in self.settings.items() if name not in unknown}
        settings = settings_from(known)
        return NetworkInfo(self.name, self.root_key, self.otp_seed, self.epoch, settings)


def record_of(network: NetworkInfo) -> NetworkRecord:
    """Return the record of a network."""
    return NetworkRecord(
        network.name,
        network.root_key,
        network.otp_seed,
        network.epoch,
        network.settings.changed(),
    )
