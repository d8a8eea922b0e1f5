"""What decides for the edge in `service`: something around a `Core` (`control.plane`)."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from appliance.ledger.timekeeper import Reading
from appliance.overlay import addresses, events
from appliance.overlay.admission import Admits
from appliance.overlay.clock import Now
from appliance.overlay.config import OverlayConfig
from appliance.overlay.core import Core, CoreConfig
from appliance.overlay.endpoint import IPNetwork
from appliance.overlay.otp import Seed
from appliance.overlay.peers import Peer
from appliance.overlay.refusals import Refusal
from appliance.overlay.seal import Sealer
from appliance.problem import Problem
from provisioning.identity import Identity

STORE_PREFIX = "overlay/"


class Brain(Protocol):
    """Events in, actions out, like `Core`; the rest is what the edge shows."""

    def start(self, adopted: events.TunnelStats, now: Now) -> Sequence[events.Action]:
        """Return what brings the interface and the remembered peers up."""

    def handle(self, event: events.Event, now: Now) -> Sequence[events.Action]:
        """Return what follows from an event."""

    def tunnel(self, now: Now) -> Sequence[events.Action]:
        """Return what fills a tunnel that had to be made again."""

    def next_timer(self) -> float | None:
        """Return the monotonic time of the next `Tick` that has something to do."""

    @property
    def core(self) -> Core:
        """The core that it has: its keyring and its guard are the edge's too."""

    @property
    def peers(self) -> Mapping[bytes, Peer]:
        """The members that were accepted, by node id."""

    @property
    def refusals(self) -> Iterable[Refusal]:
        """Who was refused lately, the newest last."""

    @property
    def ipv4(self) -> ipaddress.IPv4Address | None:
        """The node's own IPv4 overlay address."""

    @property
    def ipv6(self) -> ipaddress.IPv6Address:
        """The node's own IPv6 overlay address."""

    @property
    def problems(self) -> Sequence[Problem]:
        """What people have to know."""


def refused_ranges(identity: Identity) -> tuple[IPNetwork, ...]:
    """Return the ranges into which no path may lead: the network uses them for itself."""
    settings = identity.network.settings
    return (
        ipaddress.IPv4Network(settings.host_range),
        addresses.ula_prefix(identity.network.network_id),
        *pod_ranges(identity),
        ipaddress.IPv4Network(settings.service_cidr),
    )


def pod_ranges(identity: Identity) -> tuple[IPNetwork, ...]:
    """Return the ranges of all pods: what is not behind this node itself is behind another."""
    network = identity.network
    return (
        ipaddress.IPv4Network(network.settings.pod_cidr),
        addresses.pods_prefix(network.network_id),
    )


def make_core(
    identity: Identity,
    config: OverlayConfig,
    remembered: Mapping[str, bytes],
    *,
    admits: Admits | None = None,
    reading: Callable[[float], Reading] | None = None,
) -> Core:
    """Return a core for a real node; ``remembered``: what the store has under STORE_PREFIX."""
    network = identity.network
    return Core(
        identity,
        CoreConfig(
            config.listen_port,
            network.settings.vpn,
            ipaddress.IPv4Network(network.settings.host_range),
            refused_ranges(identity),
        ),
        Sealer(Seed(network.otp_seed, network.epoch, config.slot_seconds)),
        random=os.urandom,
        remembered=remembered,
        admits=admits,
        reading=reading,
    )
