"""What an operator decides for a whole network: one typed model.

Command-line options, the network file, the token and the documentation derive from
:class:`Settings`. Only what differs from a default is written down; therefore a default never
changes within a format version, it gets a new name instead.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from provisioning.errors import ProvisioningError

PEERS_MAX = 32
TEXT_MAX = 256
# The smallest share of the pod range that a node can work with: 16 addresses, 13 pods.
POD_HOST_BITS_MIN = 4
# A cluster's services: 254 of them, the tenth is its resolver.
SERVICE_HOST_BITS_MIN = 8
# "This network", loopback, link-local, multicast: no machine routes them (RFC 6890).
_NEVER = tuple(
    map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"))
)
Value = bool | int | str | tuple[str, ...] | None


class SettingsError(ProvisioningError):
    """A setting that cannot be."""


class UnknownSettingError(SettingsError):
    """A setting that this version of Skerry has never heard of."""


def _setting(explanation: str, *, default: Any) -> Any:  # noqa: ANN401 - as dataclasses.field
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A network's settings; anything that cannot be raises SettingsError on construction."""

    host_range: str = _setting("IPv4 range of the nodes' overlay addresses", default="10.10.0.0/16")
    mdns: bool = _setting("members on one LAN find each other by mDNS", default=True)
    dht: bool = _setting("members find each other through the public Mainline DHT", default=True)
    vpn: bool = _setting("nodes form the encrypted overlay", default=True)
    peers: tuple[str, ...] = _setting("nodes to try first, as HOST:PORT", default=())
    update_server: str | None = _setting(
        "URL of the fleet server that offers updates", default=None
    )
    expected_nodes: int | None = _setting(
        "nodes that the network will have at first; a majority of them founds the cluster",
        default=None,
    )
    servers: int = _setting("Kubernetes servers to grow to: 1 or 3", default=1)
    pod_cidr: str = _setting("IPv4 range of the pods", default="10.244.0.0/16")
    node_bits: int = _setting(
        "bits of a pod's address that number its node: 8 are 256 nodes", default=8
    )
    service_cidr: str = _setting("IPv4 range of the services", default="10.96.0.0/16")
    cluster_bits: int = _setting(
        "bits of a service's address that number its cluster: 0 is one cluster, 4 are 16", default=0
    )
    api_address: str | None = _setting(
        "without the tunnel: a free IPv4 address on the servers' LAN, which follows the leader "
        "of the cluster",
        default=None,
    )
    cni: str = _setting(
        "how pods reach each other: native (on the overlay) or flannel (VXLAN over it, and always "
        "without the tunnel)",
        default="native",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        pods = self._check_ranges()
        most = _node_bits_max(pods)
        if not 1 <= self.node_bits <= most:
            raise SettingsError(
                f"node_bits {self.node_bits} does not fit pod_cidr {self.pod_cidr}",
                hint=f"choose 1 to {most}: each node's share is a /{pods.prefixlen + 1} to a "
                f"/{pods.prefixlen + most} then",
            )
        self._check_clusters()
        if len(self.peers) > PEERS_MAX:
            raise SettingsError(f"{len(self.peers)} peers are given", hint=f"at most {PEERS_MAX}")
        for peer in self.peers:
            _check_peer(peer)
        if self.update_server is not None:
            _check_url(self.update_server)
        if self.expected_nodes is not None and not 1 <= self.expected_nodes <= 1_000_000:
            raise SettingsError(
                f"expected_nodes cannot be {self.expected_nodes}",
                hint="say how many machines there will be at first, or leave it out",
            )
        if self.servers not in {1, 3}:
            raise SettingsError(f"servers cannot be {self.servers}", hint="choose 1 or 3")
        if self.api_address is not None:
            self._check_api_address(self.api_address)
        if self.cni not in {"native", "flannel"}:
            raise SettingsError(f"cni cannot be {self.cni[:40]!r}", hint="choose native or flannel")

    def _check_clusters(self) -> None:
        services = ipaddress.IPv4Network(self.service_cidr)
        most = 32 - SERVICE_HOST_BITS_MIN - services.prefixlen
        if not 0 <= self.cluster_bits <= most:
            raise SettingsError(
                f"cluster_bits {self.cluster_bits} does not fit service_cidr {services}",
                hint=f"choose 0 to {most}: each cluster's part is a /{services.prefixlen} to a "
                f"/{services.prefixlen + most} then",
            )

    def _check_api_address(self, text: str) -> None:
        if self.vpn:
            raise SettingsError(
                f"api_address {text[:40]!r} is for networks without the tunnel",
                hint=f"leave it out: with the tunnel the API's address is in {self.host_range}; or "
                "turn vpn off",
            )
        try:
            first = ipaddress.IPv4Address(text)
            last = first + ((1 << self.cluster_bits) - 1)
        except ValueError as error:
            raise SettingsError(
                f"api_address {text[:40]!r} is not an IPv4 address",
                hint="write it like 192.168.1.250",
            ) from error
        # All clusters' addresses: each has the one at its number.
        for name in ("host_range", "pod_cidr", "service_cidr"):
            one = ipaddress.IPv4Network(getattr(self, name))
            if first <= one.broadcast_address and last >= one.network_address:
                raise SettingsError(
                    f"api_address {first} is inside {name} {one}",
                    hint="choose one of the servers' LAN that nobody has, nor DHCP gives away",
                )
        if any(one in network for network in _NEVER for one in (first, last)):
            raise SettingsError(
                f"api_address {first} is not for machines", hint="choose one like 192.168.1.250"
            )

    def _check_ranges(self) -> ipaddress.IPv4Network:
        """Return the range of the pods; all ranges are right, and share no address."""
        seen: dict[str, ipaddress.IPv4Network] = {}
        for name in ("host_range", "pod_cidr", "service_cidr"):
            one = _check_range(name, getattr(self, name))
            for other, range_ in seen.items():
                if one.overlaps(range_):
                    raise SettingsError(
                        f"{name} {one} overlaps {other} {range_}",
                        hint="choose ranges that share no address",
                    )
            seen[name] = one
        return seen["pod_cidr"]

    def changed(self) -> dict[str, Value]:
        """Return the settings that differ from their defaults, by name."""
        pairs = ((one, getattr(self, one.name)) for one in dataclasses.fields(self))
        return {one.name: value for one, value in pairs if value != one.default}


def check_room(settings: Settings) -> None:
    """Raise SettingsError if more nodes are expected than can have pods.

    For new networks only: one that has too many works, but for the pods of the last ones.
    """
    expected, places = settings.expected_nodes or 0, 1 << settings.node_bits
    if expected <= places:
        return
    pods = ipaddress.IPv4Network(settings.pod_cidr)
    bits, most = (expected - 1).bit_length(), _node_bits_max(pods)
    raise SettingsError(
        f"expected_nodes {expected}: pod_cidr {pods} with node_bits {settings.node_bits} has pod "
        f"ranges for {places} nodes",
        hint=f"choose node_bits {bits}: each node's range is a /{pods.prefixlen + bits} then"
        if bits <= most
        else f"{pods} is enough for {1 << most} nodes at most (node_bits {most}): choose a larger "
        "pod_cidr",
    )


def _node_bits_max(pods: ipaddress.IPv4Network) -> int:
    return 32 - POD_HOST_BITS_MIN - pods.prefixlen


@dataclass(frozen=True, slots=True)
class Explained:
    """A setting as an option: ``kind`` is bool, int, str or tuple (of str)."""

    name: str
    kind: type
    default: Value
    help: str


def explanations() -> tuple[Explained, ...]:
    """Return every setting in its order."""
    defaults, hints = Settings(), typing.get_type_hints(Settings)
    return tuple(
        Explained(
            one.name, _kind(hints[one.name]), getattr(defaults, one.name), one.metadata["help"]
        )
        for one in dataclasses.fields(Settings)
    )


def _kind(hint: object) -> type:
    choices = {hint, typing.get_origin(hint), *typing.get_args(hint)}
    return next(kind for kind in (bool, int, tuple, str) if kind in choices)


def unknown_settings(changed: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names that this version does not know, sorted."""
    return tuple(sorted(set(changed) - set(Settings.__dataclass_fields__)))


def settings_from(changed: Mapping[str, object], *, spelled_out: bool = False) -> Settings:
    """Return the settings that differ from the defaults as given: the inverse of `changed`.

    Raises UnknownSettingError or SettingsError; also when a default is spelled out, unless that
    is allowed: a token has one form only, people may say what is anyway so.
    """
    if unknown := unknown_settings(changed):
        raise UnknownSettingError(
            f"the setting {unknown[0][:40]!r} is unknown to this version of Skerry",
            hint="update this node's image, or make the token with the version it runs",
        )
    try:
        settings = msgspec.convert(dict(changed), Settings, strict=True)
    except msgspec.ValidationError as error:
        raise SettingsError(f"a setting has the wrong type: {error}") from error
    if not spelled_out and settings.changed().keys() != set(changed):
        raise SettingsError("a setting is spelled out although it has its default")
    return settings


def _check_range(name: str, text: str) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise SettingsError(
            f"{name} {text[:40]!r} is not an IPv4 range", hint="write it like 10.10.0.0/16"
        ) from error
    if str(network) != text or not 8 <= network.prefixlen <= 24:
        raise SettingsError(
            f"{name} {text[:40]!r} has a wrong size", hint="choose a prefix of /8 to /24"
        )
    if any(network.overlaps(other) for other in _NEVER):
        raise SettingsError(
            f"{name} {text} is not for addresses of machines", hint="choose one like 10.10.0.0/16"
        )
    return network


def _check_peer(peer: str) -> None:
    host, colon, port = peer.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    right = (
        len(peer) <= TEXT_MAX
        and bool(colon and host)
        and port.isascii()
        and port.isdigit()
        and len(port) <= 5
        and 0 < int(port) < 65536
        and (bracketed or ":" not in host)
        and host.isascii()
        and host.isprintable()
        and not any(letter in host for letter in " /@")
    )
    if right and bracketed:
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            right = False
    if not right:
        raise SettingsError(
            f"{peer[:60]!r} is not a peer",
            hint="write HOST:PORT, an IPv6 address in brackets: [2001:db8::1]:51820",
        )


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        right = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        right = False
    if not right or len(url) > TEXT_MAX or not (url.isascii() and url.isprintable()):
        raise SettingsError(
            f"update_server {url[:60]!r} is not a URL", hint="write it like https://fleet.example/"
        )
