"""Leads: hints where a member may be, and when to follow them."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.overlay.endpoint import Endpoint

# Seconds between attempts at one lead; the last one repeats.
RETRY_SECONDS = (1.5, 3.0, 6.0, 15.0, 30.0, 60.0)
LEADS_MAX = 1024


@dataclass(slots=True)
class Lead:
    """Endpoints under which one source says that a member is; ``node_id`` once known.

    ``epoch``: in which to speak there; None: the current one.
    """

    endpoints: tuple[Endpoint, ...]
    due: float
    tries: int = 0
    node_id: bytes | None = None
    epoch: int | None = None


@dataclass(slots=True)
class Leads:
    """All leads by key: ``mdns:NAME``, ``seed:HOST:PORT``, ``peer:ID``."""

    _leads: dict[str, Lead] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._leads)

    def set(
        self,
        key: str,
        endpoints: tuple[Endpoint, ...],
        due: float,
        node_id: bytes | None = None,
        epoch: int | None = None,
    ) -> None:
        """Learn or replace a lead; an unchanged one keeps its pace."""
        old = self._leads.get(key)
        if old is not None and old.endpoints == endpoints:
            old.epoch = epoch
            return
        if not endpoints:
            self._leads.pop(key, None)
            return
        if old is None and len(self._leads) >= LEADS_MAX:
            # The oldest hint goes; where peers were is kept in the peers themselves.
            del self._leads[next(iter(self._leads))]
        known = old.node_id if old else None
        self._leads[key] = Lead(endpoints, due, node_id=node_id or known, epoch=epoch)

    def drop(self, key: str) -> None:
        """Forget a lead."""
        self._leads.pop(key, None)

    def bind(self, endpoint: Endpoint, node_id: bytes) -> None:
        """Note who answered at an endpoint."""
        for lead in self._leads.values():
            if endpoint in lead.endpoints:
                lead.node_id = node_id

    def defer(self, node_id: bytes, due: float) -> None:
        """Follow no lead to a node before ``due``."""
        for lead in self._leads.values():
            if lead.node_id == node_id:
                lead.due = max(lead.due, due)

    def hasten(self, node_id: bytes | None, due: float) -> None:
        """Begin anew with all leads to a node, or with all there are."""
        for lead in self._leads.values():
            if node_id is None or lead.node_id == node_id:
                lead.tries, lead.due = 0, due

    def rest(self, endpoint: Endpoint, now: float) -> None:
        """Try what leads to an endpoint no sooner than at the slowest pace."""
        for lead in self._leads.values():
            if endpoint in lead.endpoints:
                lead.tries, lead.due = len(RETRY_SECONDS), now + RETRY_SECONDS[-1]

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return all endpoints that anything leads to."""
        return tuple(dict.fromkeys(one for lead in self._leads.values() for one in lead.endpoints))

    def take_due(
        self, now: float, satisfied: frozenset[bytes], room: int = LEADS_MAX
    ) -> tuple[tuple[Endpoint, int | None], ...]:
        """Return endpoints to try now, and in which epoch; leads to ``satisfied`` nodes rest.

        ``room``: of so many leads; the others stay due, those least tried before come first.
        """
        due = [
            one for one in self._leads.values() if one.due <= now and one.node_id not in satisfied
        ]
        found: dict[tuple[Endpoint, int | None], None] = {}
        for lead in sorted(due, key=lambda one: (one.tries, one.due))[:room]:
            lead.due = now + RETRY_SECONDS[min(lead.tries, len(RETRY_SECONDS) - 1)]
            lead.tries += 1
            found.update(dict.fromkeys((one, lead.epoch) for one in lead.endpoints))
        return tuple(found)

    def next_timer(self, satisfied: frozenset[bytes]) -> float | None:
        """Return the monotonic time at which a lead is due."""
        return min(
            (one.due for one in self._leads.values() if one.node_id not in satisfied), default=None
        )
