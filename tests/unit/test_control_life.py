"""Whatever happens to a network, once it has rest it is one again: a random life, many times."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.ledger.errors import WriteError
from appliance.overlay import events
from tests.fakes.control_world import (
    Node,
    Operator,
    World,
    join,
    make_grant_token,
    make_network,
)

# `make fuzz` lives more and other lives.
LIVES = 12 if settings.default is None or settings.default.max_examples < 1000 else 300
NODES_MAX = 6
REST_SECONDS = 1500.0
STEPS = st.sampled_from(
    ("join", "split", "heal", "kill", "boot", "lose", "revoke", "clock", "put", "wait", "moment")
)


@dataclass
class Life:
    """A network, what was done to it, and what has to be so in the end."""

    seed: int
    world: World = field(init=False)
    operator: Operator = field(init=False)
    gone: list[Node] = field(default_factory=list)
    written: dict[str, tuple[Node, bytes]] = field(default_factory=dict)
    outbox: list[bytes] = field(default_factory=list)
    epoch: int = 0
    joined: int = 0

    def __post_init__(self) -> None:
        # The smallest ranges: addresses and pod ranges clash now and then.
        self.network = make_network("10.10.0.0/24", pod_cidr="10.244.0.0/24", node_bits=3)
        self.token = make_grant_token(self.network)
        self.world = World(self.seed, loss=0.05)
        self.operator = Operator(self.network)
        for _ in range(3):
            self.join()
        self.world.run(8)

    @property
    def members(self) -> list[Node]:
        return [one for one in self.world.nodes if one not in self.gone]

    def some(self, *, alive: bool = True) -> Node | None:
        found = [one for one in self.members if one.alive is alive]
        return self.world.random.choice(found) if found else None

    def join(self) -> None:
        if len(self.members) < NODES_MAX:
            self.joined += 1
            side = self.world.random.randrange(2) if any(n.side for n in self.members) else 0
            self.world.add(join(self.token, f"n{self.joined}"), side=side)

    def step(self, what: str) -> None:
        world = self.world
        match what:
            case "join":
                self.join()
            case "split":
                nodes = world.nodes[:]
                world.random.shuffle(nodes)
                world.split(nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :])
            case "heal":
                world.heal()
            case "kill" if one := self.some():
                world.kill(one)
            case "boot" if one := self.some(alive=False):
                world.boot(one)
            case "lose" if one := self.some():
                # What it alone knew is gone.
                self.written = {k: v for k, v in self.written.items() if v[0] is not one}
                one.disk.clear()
                one.sequence = one.high_water = 0
                world.boot(one)
            case "revoke" if len(self.members) > 2 and (gone := self.some()):
                self.revoke(gone)
            case "clock" if one := self.some():
                one.clock = world.random.choice([-86_400.0, -400.0, 0.0, 400.0, 86_400.0])
                one.plane.wall(world.clock(one), world.now)
                world.feed(one, events.Tick())
            case "put" if one := self.some():
                self.put(one)
            case "wait":
                world.run(world.random.choice([5.0, 30.0]))
            case _:
                world.run(0.02)

    def put(self, one: Node) -> None:
        key, value = f"{one.identity.member().name}/{len(self.written)}", b"value"
        try:
            self.world.put(one, key, value)
        except WriteError:
            return  # its clock was put back just now, which it is told
        self.written[key] = one, value

    def revoke(self, gone: Node) -> None:
        """Do what the operator's machine does: learn all there is, then publish anywhere."""
        world = self.world
        for one in world.nodes:
            self.operator.learn(one.plane.gossip.replica, world.ms)
        via = next((one for one in self.members if one is not gone and one.alive), None)
        if via is None:
            return
        self.gone.append(gone)
        self.epoch += 1
        records = [self.operator.revoke(gone.node_id, world.ms)]
        records += self.operator.new_epoch(
            self.epoch, bytes([self.epoch]) * 32, without=[gone.node_id], now_ms=world.ms
        )
        self.outbox += records
        world.publish(via, records)

    def rest(self) -> None:
        """Put the clocks right, the cables in, the machines on; and wait."""
        world = self.world
        for one in world.nodes:
            one.clock = 0.0
            if one.alive:
                one.plane.wall(world.clock(one), world.now)
                world.feed(one, events.Tick())
            else:
                world.boot(one)
        world.heal()
        # The operator's machine keeps what it said until it sees it in the network.
        world.publish(self.members[0], self.outbox)
        settled = world.run(REST_SECONDS, until=self.settled)
        assert settled, self.told()

    def settled(self) -> bool:
        nodes = self.members
        return (
            all(one.plane.policies.secrets.current == self.epoch for one in nodes)
            and self.world.connected(nodes)
            and self.world.ranged(nodes)
            and self.world.same_ledger(nodes)
            and not any(one.up() & {two.node_id for two in nodes} for one in self.gone)
            and all(self.in_time(one) for one in nodes)
        )

    def in_time(self, one: Node) -> bool:
        return abs(one.plane.timekeeper.now_ms(self.world.now) - self.world.ms) < 5_000

    def told(self) -> str:
        lines = []
        for one in self.world.nodes:
            plane = one.plane
            lines.append(
                f"{one.identity.member().name} {'gone ' if one in self.gone else ''}"
                f"epoch {plane.policies.secrets.current} at {one.ipv4} {one.range} "
                f"up {len(one.up())} "
                f"ledger {plane.gossip.replica.ids.digest().hex()[:8]} {len(plane.gossip.replica)} "
                f"off {plane.timekeeper.now_ms(self.world.now) - self.world.ms} ms "
                f"{[problem.code for problem in plane.problems]}"
            )
        return "\n".join(lines)

    def check(self) -> None:
        nodes = self.members
        out = {one.node_id for one in self.gone}
        for one in nodes:
            assert not out & one.plane.peers.keys(), "a revoked node is a peer"
            assert not {two.key for two in self.gone} & one.wireguard.keys()
            assert not one.plane.problems, self.told()
            assert self.in_time(one)
            routed = [ipaddress.ip_network(prefix) for prefix in self.world.allowed(one)]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(routed, 2))
        for key, (by, value) in self.written.items():
            for one in nodes:
                found = one.value(key, self.world.ms)
                assert found == (None if by in self.gone else value), key


@settings(max_examples=LIVES, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**16), st.lists(STEPS, min_size=4, max_size=14))
def test_a_network_that_has_rest_is_one_network_of_those_who_are_in(
    seed: int, steps: list[str]
) -> None:
    life = Life(seed)
    for one in steps:
        life.step(one)
    life.rest()
    life.world.run(10)
    life.check()
