"""Servers take turns at restarting: one at a time, whatever clocks say, and never for ever."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.kubernetes.errors import KubeApiError
from appliance.kubernetes.turns import LEASE_SECONDS, Turns

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Store:
    """A Lease with the store's rule: who writes has to have seen the latest version."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.asked = 0
        self.rival: str | None = None

    def ask(self, method: str, _path: str, body: bytes | None = None, _: str = "") -> bytes:
        self.asked += 1
        if method == "GET":
            if self.lease is None:
                raise KubeApiError("there is none", status=404)
            return json.dumps(self.lease).encode()
        if self.rival is not None:
            # Another server is faster.
            self._take({"spec": {"holderIdentity": self.rival}})
            self.rival = None
        said = json.loads(body or b"")
        seen = said["metadata"].get("resourceVersion")
        if seen != (None if self.lease is None else self.lease["metadata"]["resourceVersion"]):
            raise KubeApiError("it changed meanwhile", status=409)
        self._take(said)
        return b"{}"

    def _take(self, said: dict[str, Any]) -> None:
        self.version += 1
        self.lease = said | {"metadata": {"resourceVersion": str(self.version)}}


async def test_one_has_the_turn_until_it_gives_it_back() -> None:
    store, one, two = Store(), Turns(), Turns()
    await one.work(store, "one", wants=True)
    await two.work(store, "two", wants=True)
    assert (one.held, two.held) == (True, False)
    await one.work(store, "one", wants=True)
    await two.work(store, "two", wants=True)
    assert (one.held, two.held) == (True, False)
    await one.work(store, "one", wants=False)
    await two.work(store, "two", wants=True)
    assert (one.held, two.held) == (False, True)


async def test_of_two_that_take_it_at_once_one_has_it() -> None:
    for begun in (False, True):
        store, one = Store(), Turns()
        if begun:
            await one.work(store, "one", wants=True)
            await one.work(store, "one", wants=False)
        store.rival = "two"
        await one.work(store, "one", wants=True)
        assert not one.held
        assert store.lease is not None
        assert store.lease["spec"]["holderIdentity"] == "two"


async def test_a_turn_of_somebody_who_is_gone_ends() -> None:
    now = [1000.0]
    store, gone, other = Store(), Turns(), Turns(clock=lambda: now[0])
    await gone.work(store, "gone", wants=True)
    for now[0] in (1000.0, 1000.0 + LEASE_SECONDS - 1):
        await other.work(store, "other", wants=True)
        assert not other.held
    now[0] = 1000.0 + LEASE_SECONDS
    await other.work(store, "other", wants=True)
    assert other.held


async def test_an_agent_that_was_killed_during_its_turn_gives_it_back() -> None:
    store, before, after = Store(), Turns(), Turns()
    await before.work(store, "one", wants=True)
    await after.work(store, "one", wants=False)
    assert store.lease is not None
    assert store.lease["spec"]["holderIdentity"] == ""
    asked = store.asked
    await after.work(store, "one", wants=False)
    assert store.asked == asked


async def test_nonsense_gives_nobody_a_turn() -> None:
    store, one = Store(), Turns()
    store.lease = {"metadata": 7}
    with pytest.raises(KubeApiError):
        await one.work(store, "one", wants=True)
    assert not one.held
