"""The API's address on a LAN without a tunnel: it moves, and who is no member finds it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.netns.lab import Lab, Node, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

ADDRESS = "192.168.77.200"
# What a keeper that is gone leaves behind for.
LIFETIME = 2


@dataclass
class Keeper:
    """A machine that has the address when it leads."""

    node: Node

    def start(self) -> None:
        words = (ADDRESS, self.node.address, str(LIFETIME), str(self.node.folder))
        self.node.start_module("tests.netns.address_keeper", *words)

    def lead(self, *, on: bool = True) -> None:
        flag = self.node.folder / "lead"
        flag.touch() if on else flag.unlink()

    @property
    def said(self) -> dict[str, Any]:
        path = self.node.folder / "said"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def here(self) -> bool:
        return f" {ADDRESS}/32 " in self.node.ip("-4", "addr", "show", "dev", "eth0")

    def awaits(self, *, here: bool, problem: str = "", seconds: float = 10) -> None:
        """Wait until it says and the kernel shows so."""

        def look() -> bool:
            return self.said == {"here": here, "problem": problem} and self.here is here

        wait_until(look, seconds, f"{self.node.name}: {here} {problem}; it says {self.said}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def keepers(lab: Lab, count: int) -> list[Keeper]:
    made = [Keeper(lab.node()) for _ in range(count)]
    for one in made:
        one.start()
        one.awaits(here=False)
    return made


def mac(node: Node) -> str:
    """Return the MAC of a machine's LAN."""
    (link,) = json.loads(node.ip("-json", "link", "show", "dev", "eth0"))
    return str(link["address"])


def believes(node: Node) -> str:
    """Return the MAC under which a machine thinks to reach the address."""
    found = json.loads(node.ip("-json", "neigh", "show", ADDRESS) or "[]")
    return str(found[0].get("lladdr", "")) if found else ""


def test_a_machine_that_is_no_member_finds_the_next_holder_though_it_knew_the_last(
    lab: Lab,
) -> None:
    first, second = keepers(lab, 2)
    stranger = lab.node()
    first.lead()
    first.awaits(here=True)
    assert stranger.reaches(ADDRESS)
    assert believes(stranger) == mac(first.node)
    # Without a word, as with the power: nobody takes the address away, nobody answers.
    lab.cut([first.node])
    first.node.power_off()
    second.lead()
    second.awaits(here=True)
    # At once: what it knew was put right, not forgotten first.
    assert believes(stranger) == mac(second.node)
    assert stranger.reaches(ADDRESS)
    # It never takes it for itself to speak from.
    assert f"src {second.node.address}" in second.node.ip("route", "get", stranger.address)


def test_a_keeper_that_ends_without_a_word_does_not_leave_it_behind(lab: Lab) -> None:
    first, second = keepers(lab, 2)
    first.lead()
    first.awaits(here=True)
    # The machine lives on and answers for the address, so the next one does not take it yet.
    first.node.kill()
    second.lead()
    second.awaits(here=False, problem="api-address-taken")
    second.awaits(here=True, seconds=LIFETIME + 5)
    assert not first.here
    # What it finds at its next start that is not its any more it takes away, here nothing.
    first.lead(on=False)
    first.start()
    first.awaits(here=False)


def test_an_address_that_a_machine_has_is_not_taken_nor_one_of_another_lan(lab: Lab) -> None:
    (one,) = keepers(lab, 1)
    owner = lab.node()
    owner.ip("addr", "add", f"{ADDRESS}/24", "dev", "eth0")
    one.lead()
    one.awaits(here=False, problem="api-address-taken")
    owner.ip("addr", "del", f"{ADDRESS}/24", "dev", "eth0")
    one.awaits(here=True)
    # And one that comes later is seen.
    owner.ip("addr", "add", f"{ADDRESS}/24", "dev", "eth0")
    one.awaits(here=True, problem="api-address-shared")
    owner.ip("addr", "del", f"{ADDRESS}/24", "dev", "eth0")
    one.awaits(here=True)
    # The node moves to another LAN: nobody would look for the address there.
    one.node.ip("addr", "add", f"{one.node.address}/31", "dev", "eth0")
    one.node.ip("addr", "del", f"{one.node.address}/24", "dev", "eth0")
    one.awaits(here=False, problem="api-address-off-lan")


def test_after_a_partition_the_old_holder_gives_way_and_all_find_the_new_one(lab: Lab) -> None:
    old, new = keepers(lab, 2)
    stranger, beside = lab.node(), lab.node()
    old.lead()
    old.awaits(here=True)
    assert stranger.reaches(ADDRESS)
    lab.cut([old.node, beside])
    new.lead()
    new.awaits(here=True)
    assert beside.reaches(ADDRESS)
    assert stranger.reaches(ADDRESS)
    lab.heal()
    # Both hear of each other before the ledger has spoken.
    old.awaits(here=True, problem="api-address-shared")
    new.awaits(here=True, problem="api-address-shared")
    old.lead(on=False)
    old.awaits(here=False)
    new.awaits(here=True)
    for one in (stranger, beside):
        wait_until(lambda one=one: believes(one) == mac(new.node), 5, "it is told")  # type: ignore[misc]
        assert one.reaches(ADDRESS)
