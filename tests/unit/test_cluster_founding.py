"""Exactly one founder, whatever the network, the disks and the clocks do."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cluster import founding
from appliance.cluster.cluster_entries import NUMBER_MAX, Ballot, Vote, merged, value_of
from appliance.cluster.founding import Electorate, Quiet
from appliance.cluster.model import Kind, Orders, Wanted
from tests.fakes.founding_world import World, member, node_id

Disturbance = tuple[str, int, int]
EXAMPLES = int(os.environ.get("SKERRY_EXAMPLES", "8"))
DUELS = 25 * EXAMPLES
DISTURBANCES = ("split", "heal", "restart", "no ledger", "no file", "off", "on", "clock", "wait")
schedules = st.lists(
    st.tuples(st.sampled_from(DISTURBANCES), st.integers(0, 31), st.integers(0, 25)), max_size=12
)


@pytest.fixture(scope="module", autouse=True)
def _hasty() -> Iterator[None]:
    """Let proposers wait for nobody, so that they get into each other's way."""
    before, founding.PATIENCE_SECONDS = founding.PATIENCE_SECONDS, 0.5
    yield
    founding.PATIENCE_SECONDS = before


def disturb(world: World, what: str, which: int, steps: int) -> None:
    one = world.nodes[which % len(world.nodes)]
    match what:
        case "split":
            for number, other in enumerate(world.nodes):
                other.side = (which >> number) & 1
        case "heal":
            for other in world.nodes:
                other.side = 0
        case "restart" | "no ledger" | "no file":
            world.restart(one, ledger_lost=what == "no ledger", file_lost=what == "no file")
        case "off":
            one.up = False
        case "on":
            one.up = True
        case "clock":
            one.clock += 1e9 if steps % 2 else -1e9
    world.run(steps)


def all_well(world: World) -> None:
    for one in world.nodes:
        one.up, one.side = True, 0
    world.loss = 0.0
    world.run(60.0)


@given(
    st.sampled_from(["majority", "grant", "order"]),
    st.integers(3, 5),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.3, 0.6]),
    st.sampled_from([0.5, 6.0]),
    st.integers(0, 31),
    schedules,
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_never_two_founders_and_one_in_the_end(
    by: str,
    count: int,
    seed: int,
    loss: float,
    delay: float,
    sides: int,
    schedule: list[Disturbance],
) -> None:
    first = seed % (7 if by == "majority" else count)
    members = [
        member(number + 1, founder=number == first and by != "order") for number in range(count)
    ]
    wanted = Wanted(expected_nodes=count if by == "majority" else None)
    orders = Orders(founder=node_id(first + 1)) if by == "order" else None
    world = World(members, wanted=wanted, orders=orders, seed=seed, loss=loss, delay=delay)
    for what, which, steps in [("split", sides, 0), *schedule]:
        disturb(world, what, which, steps)
        assert len(world.founders) <= 1
    all_well(world)
    assert len(world.founders) == 1
    assert len(set().union(*world.clusters.values())) == 1
    kinds = [one.kind for one in world.nodes]
    # Its API never answered: the others wait for it, and none of them founds another one.
    assert sorted(kinds, key=str) == sorted([Kind.FOUND, *[Kind.WAIT] * (count - 1)], key=str)


class Duel:
    """Proposers that never wait, and entries that come late, twice, out of order or never."""

    def __init__(self, seed: int, count: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - chance that can be repeated
        self.nodes = [node_id(number + 1) for number in range(count)]
        # Every version of every node's entry, and which version of each the others have.
        self.said: dict[bytes, list[Vote]] = {node: [Vote()] for node in self.nodes}
        self.heard = {one: dict.fromkeys(self.nodes, 0) for one in self.nodes}
        self.file = dict.fromkeys(self.nodes, Vote())
        self.chosen: set[bytes] = set()
        self.electorate = Electorate(frozenset(self.nodes), count // 2 + 1, tuple(self.nodes))

    def move(self) -> None:
        one = self.random.choice(self.nodes)
        match self.random.randrange(40):
            case 0:  # Its ledger is lost; what others have of it comes back some time.
                self.heard[one] = dict.fromkeys(self.nodes, 0)
            case low if low < 20:
                other, about = self.random.choices(self.nodes, k=2)
                self.heard[one][about] = max(self.heard[one][about], self.heard[other][about])
            case _:
                self.decide(one)

    def decide(self, one: bytes) -> None:
        votes = {node: self.said[node][at] for node, at in self.heard[one].items()}
        whole = merged(self.file[one], votes[one])
        if whole != votes[one]:
            return self.say(one, whole)
        # A new ballot now and then; all else goes on at once.
        with pytest.MonkeyPatch.context() as patch:
            patience = 0.0 if self.random.random() < 0.1 else 1e9
            patch.setattr(founding, "PATIENCE_SECONDS", patience)
            done = founding.step(one, votes, self.electorate, 0.0, Quiet(), may_propose=True)
        if done.chosen is not None:
            self.chosen.add(done.chosen)
        elif done.vote is not None:
            self.say(one, done.vote)
        return None

    def say(self, one: bytes, vote: Vote) -> None:
        self.file[one] = vote
        self.said[one].append(vote)
        self.heard[one][one] = len(self.said[one]) - 1


def test_whoever_duels_one_is_chosen_for_good() -> None:
    ended = 0
    for seed in range(DUELS):
        duel = Duel(seed, 3)
        for _ in range(250):
            duel.move()
        assert len(duel.chosen) <= 1, seed
        ended += bool(duel.chosen)
    assert ended > DUELS // 2


@pytest.mark.parametrize(
    "lie",
    [
        # The highest ballot there is, so that nobody could go above it.
        Vote(proposed=Ballot(NUMBER_MAX, node_id(3))),
        Vote(promised=Ballot(NUMBER_MAX, node_id(3))),
        Vote(proposed=Ballot(NUMBER_MAX, node_id(3)), proposal=node_id(3)),
        # In another's name.
        Vote(proposed=Ballot(50, node_id(2)), proposal=node_id(3)),
        # Agreed to somebody who does not exist, in a ballot of the future.
        Vote(
            promised=Ballot(1, node_id(1)),
            accepted=Ballot(NUMBER_MAX, node_id(3)),
            value=node_id(9),
        ),
    ],
)
def test_one_liar_holds_nobody_up(lie: Vote) -> None:
    world = World([member(1), member(2), member(3)], wanted=Wanted(expected_nodes=3))
    world.say(world.node(3), "ballot", value_of(lie))
    world.node(3).up = False
    for one in world.nodes[:2]:
        one.ledger.update(world.node(3).ledger)
        one.knows.add(node_id(3))
    world.run(40)
    assert len(world.founders) == 1
    assert world.founders < {node_id(1), node_id(2)}
