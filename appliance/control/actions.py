"""What the control plane wants done beyond the overlay's actions."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.ledger.state import Change
from appliance.overlay.events import Other


@dataclass(frozen=True, slots=True)
class LedgerChanged(Other):
    """Entries came and went: keep them, tell whoever watches.

    ``own``: what this node wrote is among them, so it has to be on the disk before anything that
    follows leaves the node. ``high_water`` and ``sequence`` are the writer's marks.
    """

    changes: tuple[Change, ...]
    own: bool
    high_water: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Told:
    """A member told this node that it does not let it in, and why. ``at``: Unix seconds."""

    node_id: bytes
    name: str
    cause: str
    detail: str
    at: float
