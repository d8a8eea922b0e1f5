"""From what the shim sends to what it prints, with many callers."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cni import steps
from appliance.cni.operations import Operations
from appliance.cni.provider import Pods
from appliance.cni.queues import PER_CONTAINER_MAX
from appliance.cni.server import Answer, Caller
from appliance.cni.service import CniService
from appliance.cni.spec import Attachment
from appliance.cni.store import Store, StoreError
from tests.unit.cni_kernel import FakeKernel
from tests.unit.test_cni_operations import NETNS, NETWORK

pytestmark = pytest.mark.anyio


class Node:
    """A service on a fake kernel, called past its socket."""

    def __init__(self, folder: Path) -> None:
        self.kernel = FakeKernel()
        self.kernel.world.namespaces.add(NETNS)
        store = Store(folder, "boot-1")
        # Cleared, the next action waits.
        self.go = threading.Event()
        self.go.set()
        self.actions = 0
        self.operations = Operations(
            self.kernel, store, lambda: Pods(NETWORK, ""), before=self._before
        )
        self.operations.open()
        self.service = CniService(lambda: Pods(NETWORK, ""), folder, operations=self.operations)
        self.caller, self.other_end = socket.socketpair()

    def _before(self, _: object) -> None:
        self.actions += 1
        assert self.go.wait(30)

    async def call(self, command: str, container: str = "aa11", **config: object) -> Answer:
        env = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
        stdin = {"cniVersion": "1.0.0", "name": "skerry"} | config
        body = {"env": env | {"CNI_NETNS": NETNS}, "stdin": json.dumps(stdin)}
        return await self.service.handle(json.dumps(body).encode(), None, Caller(self.caller))


def code(answer: Answer) -> tuple[int, str]:
    said: dict[str, Any] = json.loads(answer.text)
    assert answer.status == 1
    return said["code"], said["cniVersion"]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.go.set()
    made.caller.close()
    made.other_end.close()


async def test_an_answer_for_each_operation(node: Node) -> None:
    added = await node.call("ADD")
    result = json.loads(added.text)
    assert (added.status, result["cniVersion"]) == (0, "1.0.0")
    assert await node.call("CHECK", prevResult=result) == Answer(0, b"")
    assert await node.call("DEL") == Answer(0, b"")
    for command in ("STATUS", "GC"):
        assert await node.call(command, cniVersion="1.1.0") == Answer(0, b"")
    assert json.loads((await node.call("VERSION")).text)["supportedVersions"][-1] == "1.1.0"


async def test_every_failure_has_a_code_and_the_callers_version(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node.kernel.refuses = (steps.Veth,)
    assert code(await node.call("ADD")) == (102, "1.0.0")
    assert code(await node.call("ADD", ipam={"type": "host-local"})) == (2, "1.0.0")
    assert code(await node.call("CHECK", prevResult={})) == (3, "1.0.0")

    def full(*_: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(Store, "write", full)
    assert code(await node.call("ADD")) == (5, "1.0.0")
    assert not caplog.records
    # What nobody thought of is told to the runtime in one line, and to the log as a whole.
    monkeypatch.setattr(Store, "write", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR):
        assert code(await node.call("ADD")) == (102, "1.0.0")
    assert "ZeroDivisionError" in caplog.text
    caller = Caller(node.caller)
    assert code(await node.service.handle(b"garbage", None, caller)) == (6, "1.1.0")


async def test_calls_of_one_container_wait_for_each_other(node: Node) -> None:
    node.go.clear()
    first = asyncio.create_task(node.call("ADD"))
    calls = [asyncio.create_task(node.call("DEL")) for _ in range(PER_CONTAINER_MAX)]
    await asyncio.sleep(0)
    # One too many is sent away; others are not held up by these.
    assert code(await node.call("DEL")) == (11, "1.0.0")
    assert (await node.call("VERSION")).status == 0
    assert not first.done()
    node.go.set()
    assert (await first).status == 0
    assert {one.status for one in await asyncio.gather(*calls)} == {0}
    assert not node.kernel.world.hosts


async def test_who_went_while_waiting_gets_nothing_done(node: Node) -> None:
    node.other_end.close()
    assert code(await node.call("ADD")) == (11, "1.0.0")
    assert node.actions == 0


async def test_a_call_that_is_broken_off_frees_its_turn(node: Node) -> None:
    node.go.clear()
    first = asyncio.create_task(node.call("ADD"))
    waits = asyncio.create_task(node.call("DEL"))
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    last = asyncio.create_task(node.call("DEL"))
    node.go.set()
    assert [(await first).status, (await last).status] == [0, 0]


async def test_a_gc_waits_for_what_runs_and_holds_back_the_rest(node: Node) -> None:
    node.go.clear()
    adds = asyncio.create_task(node.call("ADD"))
    await asyncio.sleep(0)
    nothing: dict[str, Any] = {"cni.dev/valid-attachments": []}
    collects = asyncio.create_task(node.call("GC", cniVersion="1.1.0", **nothing))
    await asyncio.sleep(0)
    again = asyncio.create_task(node.call("ADD", "bb22"))
    await asyncio.sleep(0)
    assert not collects.done()
    node.go.set()
    assert [one.status for one in await asyncio.gather(adds, collects)] == [0, 0]
    # The one behind it came after, and is there; the one before is not.
    assert (await again).status == 0
    assert list(node.kernel.world.hosts) == [steps.host_name(Attachment("skerry", "bb22", "eth0"))]
