"""What the agent observes through the supervisor, fetched at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec

from appliance.api.answers import ClusterFacts, LedgerEntries, SecretFacts, SecretList
from appliance.cluster import orders
from appliance.cluster.model import Orders
from appliance.kubernetes import facts
from appliance.kubernetes.asking import Supervisor
from appliance.kubernetes.credentials import ROLES, stored_as
from appliance.kubernetes.errors import SupervisorError
from appliance.kubernetes.facts import Cluster
from appliance.ledger.assigned import read_id
from appliance.ledger.said import Heard

NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Observed:
    """What was so at one time, as the supervisor told it.

    ``secrets`` and ``values`` are this cluster's, by the names in `credentials`; the latter are
    those that this node can read. ``revoked``: the root key has put this node out, and it heard of
    it.
    """

    cluster: Cluster
    said: tuple[Heard, ...] = ()
    orders: Orders = field(default_factory=Orders)
    secrets: Mapping[str, SecretFacts] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    revoked: bool = False


class Observer:
    """Fetches it; a secret's value is fetched once per generation."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._values: dict[str, tuple[int, str]] = {}

    async def observe(self) -> Observed:
        """Return what is so now. Raises AwayError and SupervisorError; nothing is guessed."""
        get = self._supervisor.get
        document = facts.read(await get("/v1/cluster"), ClusterFacts, "the cluster")
        entries = facts.read(await get("/v1/ledger/cluster"), LedgerEntries, "the bucket cluster")
        told = facts.read(await get("/v1/ledger/assigned?prefix=cluster/"), LedgerEntries, "orders")
        listed = facts.read(await get("/v1/secret"), SecretList, "the secrets")
        names = {stored_as(name, document.cluster): name for name in ROLES}
        secrets = {names[one.name]: one for one in listed.secrets if one.name in names}
        cluster = facts.check(document)
        return Observed(
            cluster,
            entries.heard(),
            orders.read_orders(told.heard(), cluster.plan.network_id),
            secrets,
            await self._read(secrets),
            bool(await self.revoked(frozenset({document.node_id}))),
        )

    async def revoked(self, ids: frozenset[str]) -> frozenset[str]:
        """Return which nodes are out for ever."""
        found = set()
        for one in sorted(ids):
            if read_id(one) is None:
                continue
            try:
                await self._supervisor.get(f"/v1/ledger/revoked/node/{one}")
            except SupervisorError as error:
                if error.status == NOT_FOUND:
                    continue
                raise
            found.add(one)
        return frozenset(found)

    async def _read(self, secrets: Mapping[str, SecretFacts]) -> dict[str, str]:
        for name, one in secrets.items():
            if not one.readable or self._values.get(name, (0, ""))[0] == one.generation:
                continue
            try:
                data = await self._supervisor.get(f"/v1/secret/{quote(one.name)}")
            except SupervisorError as error:
                if error.status == NOT_FOUND:
                    continue  # It was changed in between: the next time sees it.
                raise
            found = facts.read(data, _Value, f"the secret {name}")
            # No token is anything else; what was sealed before does not count any more.
            value = found.value if found.encoding == "utf-8" else ""
            self._values[name] = (found.generation, value)
        return {name: value for name, (_, value) in self._values.items() if name in secrets}


class _Value(msgspec.Struct, frozen=True):
    generation: int
    encoding: str
    value: str = ""

    def __repr__(self) -> str:
        return "a secret's value"
