"""One node's ledger as programs see it, over a real Gossip: no socket, no other node."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from appliance.ledger.access import LedgerAccess
from appliance.ledger.entry import Entry, read_entry
from appliance.ledger.gossip import Action, Changed, Gossip, GossipConfig, Send
from appliance.ledger.messages import Entries, decode_message
from appliance.ledger.state import Replica, Verdict
from appliance.ledger.timekeeper import Timekeeper
from tests.fakes.ledger import NOW, Node, node, replica, writer

SERVER = node(1, roles=("server",))
OTHER = node(2)
NODES = [SERVER, OTHER]


@dataclass
class World:
    """One node's ledger, its clock, and what left it."""

    me: Node
    replica: Replica
    access: LedgerAccess
    gossip: Gossip
    mono: float = 0.0
    sent: list[Send] = field(default_factory=list)

    def told(self) -> list[Entry]:
        """Return the entries in what was sent, and forget them."""
        messages = [decode_message(one.data) for one in self.sent]
        self.sent.clear()
        records = [record for one in messages if isinstance(one, Entries) for record in one.records]
        return [read_entry(record) for record in records]

    def hear(self, one: Entry) -> None:
        """Take an entry in as the gossip does when a peer sends it."""
        outcome = self.replica.apply(one, self.access.now_ms())
        for change in outcome.changes:
            self.access.changed(change)
        assert outcome.verdict is Verdict.ACCEPTED

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Changed(change):
                    self.access.changed(change)
                case Send():
                    self.sent.append(action)
                case _:
                    raise AssertionError(action)


def world(me: Node = SERVER) -> World:
    keeper = Timekeeper(NOW - 10**10, 0, 0.0)
    keeper.wall(NOW, synced=True, mono=0.0)
    copy = replica(NODES)
    random = Random(1)  # noqa: S311 - a simulation
    gossip = Gossip(writer(me, copy), keeper, random, 0.0, GossipConfig(swim=None))
    gossip.set_peers([one.node_id for one in NODES], 0.0)

    def now() -> float:
        return made.mono

    def perform(actions: list[Action]) -> None:
        made.perform(actions)

    made = World(me, copy, LedgerAccess(gossip, clock=now, perform=perform), gossip)
    return made
