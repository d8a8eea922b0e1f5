"""Nodes that an operator's command goes through: a replica behind a way that can misbehave."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.ledger.claims import GRANT_KIND, witness_key, witness_value
from appliance.ledger.entry import Entry, read_entry
from appliance.ledger.state import Replica
from appliance.ledger.timekeeper import Quality
from appliance.operator.errors import PublishError
from appliance.operator.publisher import Fetched, Result
from appliance.operator.resolve import find_node
from appliance.operator.rootkey import RootKey
from appliance.operator.snapshot import Snapshot
from appliance.operator.statements import Desk
from appliance.operator.work import Report, Work
from provisioning import operator_files as files
from provisioning.keys import id_text
from tests.fakes.ledger import NOW, Node, entry, network, node, replica, seed

ROOT = RootKey(network(), seed("root", 0))
# Half a second later than what the nodes wrote.
LATER = NOW + 500


@dataclass
class FakeNode:
    """A node with a replica. ``fate`` decides what becomes of each record; None: the node's word.

    ``log`` are the entries in the order in which they came.
    """

    replica: Replica
    where: str = "the fake node"
    now_ms: int | None = None
    node_id: str | None = None
    down: bool = False
    fate: Callable[[Entry], Result | Exception | None] = lambda _: None
    log: list[Entry] = field(default_factory=list)

    def fetch(self) -> Fetched:
        if self.down:
            raise PublishError("the fake node is down", hint="wait")
        records = tuple(one.record for one in self.replica)
        return Fetched(id_text(network().network_id), records, self.now_ms, self.node_id)

    def publish(self, records: Sequence[bytes]) -> tuple[Result, ...]:
        results = []
        for record in records:
            one = read_entry(record)
            fate = self.fate(one)
            if isinstance(fate, Exception):
                raise fate
            if fate is None:
                self.log.append(one)
                outcome = self.replica.apply(one, self.now_ms or LATER)
                reason = outcome.reason.value if outcome.reason else ""
                fate = Result(outcome.verdict.value, reason)
            results.append(fate)
        return tuple(results)


def fake_node(members: Iterable[Node]) -> FakeNode:
    """Return a node that knows these members."""
    return FakeNode(replica(members))


def witness_entry(by: Node, of: Node) -> Entry:
    """Return that one member saw another come in under its grant."""
    value = witness_value(of.grant_id, Quality.SYNCED)
    return entry(by, "witness", witness_key(by.node_id, GRANT_KIND, of.node_id), value, sequence=9)


def make_directory(path: Path) -> Path:
    """Make a network's directory whose network is `tests.fakes.ledger.network`."""
    path.mkdir(mode=0o700, parents=True)
    facts = {
        "format": 1,
        "name": network().name,
        "root_key": base64.b64encode(network().root_key).decode(),
        "otp_seed": base64.b64encode(network().otp_seed).decode(),
        "epoch": 0,
        "settings": {},
    }
    key = {"format": 1, "seed": base64.b64encode(seed("root", 0)).decode()}
    (path / files.NETWORK_FILE).write_text(json.dumps(facts))
    (path / files.KEY_FILE).write_text(json.dumps(key))
    return path


def work_in(
    directory: Path,
    node: FakeNode | PublishError,
    *,
    now_ms: int = LATER,
    notes: list[str] | None = None,
) -> Work:
    """Return the directory at work, as a new command finds it."""
    operator = files.open_network(directory, lambda: "")
    root = RootKey(operator.network, operator.root_seed)
    return Work(directory, root, node, now_ms, (notes if notes is not None else []).append)


# What operators want, for `Work.do`


def out(number: int) -> Callable[[Desk, Snapshot], object]:
    return lambda desk, _: desk.revoke(nodes=[node(number + 1).node_id])


def rename(text: str, name: str) -> Callable[[Desk, Snapshot], object]:
    return lambda desk, _: desk.rename(find_node(text, desk.replica, desk.now_ms), name)


def nothing(_: Desk, __: Snapshot) -> None:
    """Only publish what is left over."""


def do(
    home: Path, at: FakeNode, intent: Callable[[Desk, Snapshot], object], now_ms: int = LATER
) -> Report:
    _, report = work_in(home, at, now_ms=now_ms).do(intent)
    return report
