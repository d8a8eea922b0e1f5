"""What the supervisor tells about itself, as one document (``GET /v1/status``).

Fields are only ever added; names carry their unit (``_s``, ``_ms``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.machine import Release
from appliance.problem import Problem
from provisioning.keys import id_text

if TYPE_CHECKING:
    from appliance.control.actions import Told as ToldBy
    from appliance.control.views import LedgerView
    from appliance.overlay.status import OverlayStatus, PeerStatus, RefusalStatus

CLUSTER_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Told:
    """A member that does not let this node in, and why, in its own words."""

    cause: str
    detail: str
    who: str
    node_id: str
    age_s: float


@dataclass(frozen=True, slots=True)
class OverlayView:
    """The encrypted network's end on this node."""

    interface: str
    mode: str
    addresses: tuple[str, ...]
    listen_port: int
    peers: tuple[PeerStatus, ...] = ()
    refusals: tuple[RefusalStatus, ...] = ()
    # Of this node's pods, IPv4 and IPv6; and why it can have none.
    pod_range: tuple[str, ...] = ()
    no_pods: str = ""


@dataclass(frozen=True, slots=True)
class RefusedToken:
    """A token that was found and can't be used."""

    where: str
    error: str
    hint: str


@dataclass(frozen=True, slots=True)
class Status:
    """The whole document."""

    state: str
    state_since_s: float
    reasons: tuple[Problem, ...]
    # Found wrong in the past; nothing is to be done about it.
    notices: tuple[Problem, ...]
    name: str
    node_id: str
    network: str
    network_id: str
    release: Release
    uptime_s: float
    supervisor_uptime_s: float
    overlay: OverlayView | None = None
    refused_tokens: tuple[RefusedToken, ...] = ()
    api: int = 1
    ledger: LedgerView | None = None
    told: tuple[Told, ...] = ()
    # As the cluster agent wrote it: its ``status.json``.
    cluster: Mapping[str, object] | None = None


def overlay_view(snapshot: OverlayStatus) -> OverlayView:
    """Return the part of a snapshot that is told."""
    return OverlayView(
        interface=snapshot.interface,
        mode=snapshot.mode,
        addresses=snapshot.addresses,
        listen_port=snapshot.listen_port,
        peers=snapshot.peers,
        refusals=snapshot.refusals,
        pod_range=snapshot.pod_range,
        no_pods=snapshot.no_pods,
    )


def told_view(told: Iterable[ToldBy], *, now: float) -> tuple[Told, ...]:
    """Return what members told this node, the latest first; ``now`` is Unix seconds."""
    return tuple(
        Told(
            cause=one.cause,
            detail=one.detail,
            who=one.name,
            node_id=id_text(one.node_id),
            age_s=round(max(now - one.at, 0), 1),
        )
        for one in sorted(told, key=lambda one: one.at, reverse=True)
    )


def cluster_report(path: Path) -> Mapping[str, object] | None:
    """Return what the cluster agent reports, None if it never did or what is there is no report."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(CLUSTER_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
