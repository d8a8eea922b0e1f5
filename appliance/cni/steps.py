"""The steps that give a container its network and take it away, as data, and what the kernel shows.

Whoever performs them keeps three promises: every step may come twice; `Veth` replaces a link that
has the name already; taking away what is not there is no error.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from appliance.cni.spec import Attachment

_HOST = "skp"
# Locally administered (the 2 of the first number), and one machine's.
_MAC = b"\x0a\x73"
_IS_HOST = re.compile(rf"{_HOST}[a-z2-7]{{12}}\Z")


class _Step(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded with a tag, so that records tell the kinds apart."""


class Reserve(_Step, frozen=True, tag="reserve"):
    """Write down the lease, with the state that `ipam.allocate` returned."""

    attachment: Attachment


class Bridge(_Step, frozen=True, tag="bridge"):
    """Have the bridge, up, with the gateways' addresses; shared, so never undone."""

    name: str
    mtu: int
    mac: str
    gateways: tuple[str, ...]


class Veth(_Step, frozen=True, tag="veth"):
    """Make a pair of links, one on the node, one in the container; ``mac`` is the latter's.

    At once, under its own name: moving a link that exists costs the kernel ten times as much.
    """

    host: str
    netns: str
    ifname: str
    mtu: int
    mac: str


class Addresses(_Step, frozen=True, tag="addresses"):
    """Give the container's link its addresses, each with its prefix, and set it up."""

    netns: str
    ifname: str
    addresses: tuple[str, ...]


class Routes(_Step, frozen=True, tag="routes"):
    """Set the container's routes: destination and gateway, "" for what is on the link."""

    netns: str
    ifname: str
    routes: tuple[tuple[str, str], ...]


class Port(_Step, frozen=True, tag="port"):
    """Make the host's end a port of the bridge and set it up: from here on packets pass.

    The node is told whose the addresses and the hardware address are, and believes nobody else.
    """

    host: str
    bridge: str
    mac: str
    addresses: tuple[str, ...]


class Gate(_Step, frozen=True, tag="gate"):
    """Hold back what these addresses send and are sent, until whoever enforces policies is ready.

    It takes them out of the gate itself, so nothing here does that for a running container.
    """

    addresses: tuple[str, ...]


class Ungate(_Step, frozen=True, tag="ungate"):
    """Take addresses out of the gate; they may be out of it."""

    addresses: tuple[str, ...]


class Unlearn(_Step, frozen=True, tag="unlearn"):
    """Have the node know nobody under these addresses."""

    bridge: str
    addresses: tuple[str, ...]


class RemoveVeth(_Step, frozen=True, tag="remove-veth"):
    """Remove the host's end; the kernel removes the container's, its addresses and routes."""

    host: str


class Release(_Step, frozen=True, tag="release"):
    """Give the addresses back; last, when nothing answers under them any more."""

    attachment: Attachment


Step = Reserve | Bridge | Veth | Addresses | Routes | Gate | Port
Undo = Ungate | Unlearn | RemoveVeth | Release
# What can be put right under a running container. Of its own side nothing is: it is the container's
# from the moment it starts, and what changed it there is not for us to know.
REPAIRABLE = (Reserve, Bridge, Port)


@dataclass(frozen=True, slots=True)
class HostLink:
    """A link of the node: a bridge or the host's end of a pair."""

    up: bool = True
    mtu: int = 0
    master: str = ""
    mac: str = ""
    addresses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class InsideLink:
    """A link in a container."""

    up: bool = True
    mtu: int = 0
    mac: str = ""
    addresses: frozenset[str] = frozenset()
    routes: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the kernel shows at one moment.

    ``namespaces`` are the paths of those asked for that exist, ``inside`` goes by path and name.
    Addresses carry their prefix, except those ``held`` at the gate. ``rules`` says that the node's
    own are there: masquerade and the gate.
    """

    namespaces: frozenset[str] = frozenset()
    links: Mapping[str, HostLink] = field(default_factory=lambda: MappingProxyType({}))
    inside: Mapping[tuple[str, str], InsideLink] = field(
        default_factory=lambda: MappingProxyType({})
    )
    held: frozenset[str] = frozenset()
    rules: bool = True


def host_name(attachment: Attachment) -> str:
    """Return the name of the host's end: a DEL that has nothing else finds it by this."""
    # None of the three can hold a slash.
    text = f"{attachment.network}/{attachment.container}/{attachment.ifname}"
    digest = hashlib.sha256(text.encode()).digest()
    return _HOST + base64.b32encode(digest)[:12].decode().lower()


def mac_of(packed: bytes) -> str:
    """Return the hardware address that goes with an address: of our own, not of any maker.

    Whoever gets an address again gets this again, so that no neighbour remembers a wrong one.
    """
    return ":".join(f"{one:02x}" for one in _MAC + packed[-4:])


def is_host_name(name: str) -> bool:
    """Say whether a link is, by its name, the host's end of one of our pairs."""
    return _IS_HOST.match(name) is not None


def is_done(step: Step, snapshot: Snapshot, leased: frozenset[Attachment]) -> bool:
    """Say whether the effect of a step is there; a gate may have been opened since."""
    match step:
        case Reserve(attachment):
            return attachment in leased
        case Bridge(name, _, _, gateways):
            bridge = snapshot.links.get(name)
            return bridge is not None and bridge.up and bridge.addresses >= set(gateways)
        case Veth(host, netns, ifname):
            return host in snapshot.links and (netns, ifname) in snapshot.inside
        case Addresses(netns, ifname, addresses):
            inside = snapshot.inside.get((netns, ifname))
            return inside is not None and inside.up and inside.addresses >= set(addresses)
        case Routes(netns, ifname, routes):
            inside = snapshot.inside.get((netns, ifname))
            return inside is not None and inside.routes >= set(routes)
        case Port(host, bridge_name):
            link = snapshot.links.get(host)
            return link is not None and link.up and link.master == bridge_name
        case Gate():
            return True


def undo_of(steps: tuple[Step, ...]) -> tuple[Undo, ...]:
    """Return what takes back steps that were begun, done or not: the last one first."""
    found: list[Undo] = []
    for step in reversed(steps):
        match step:
            case Gate(addresses):
                found.append(Ungate(addresses))
            case Veth(host):
                found.append(RemoveVeth(host))
            case Port(_, bridge, _, addresses):
                found.append(Unlearn(bridge, addresses))
            case Reserve(attachment):
                found.append(Release(attachment))
            case _:
                pass
    return tuple(found)
