"""The supervisor in this process, with a fake overlay at the edge below it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from appliance import enrolment
from appliance import supervisor as supervisor_module
from appliance.api.client import ApiError, call
from appliance.config import SupervisorConfig
from appliance.journal import Redactor
from appliance.launch import prepare_directories
from appliance.lifecycle import State
from appliance.notify import Notifier
from appliance.people import TOKEN_PATTERNS, Console
from appliance.problem import Problem
from appliance.supervisor import Supervisor
from provisioning.keys import public_key
from provisioning.network import NetworkInfo
from provisioning.token import make_token
from skerry.errors import SkerryError
from tests.fakes.overlay import FakeOverlay

ROOT_SEED = bytes(range(32))
NOW = time.time()


def token_text(*, issued: float = NOW, expires: int | None = None) -> str:
    network = NetworkInfo("home", public_key(ROOT_SEED), bytes(32))
    return make_token(network, ROOT_SEED, now=issued, expires=expires).text()


@dataclass
class Lab:
    """One supervisor at work, and what can be done to it from outside."""

    supervisor: Supervisor
    config: SupervisorConfig
    overlay: FakeOverlay

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - the condition is anybody's
                await asyncio.sleep(0.001)

    async def state(self, wanted: State) -> None:
        await self.until(lambda: self.supervisor.status().state == wanted.value)

    async def ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        return await asyncio.to_thread(call, method, path, body, socket_path=self.config.socket)

    def reasons(self) -> list[str]:
        return [problem.code for problem in self.supervisor.status().reasons]


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "QUICK_TICK_SECONDS", 0.002)
    monkeypatch.setattr(supervisor_module, "TICK_SECONDS", 0.002)
    monkeypatch.setattr(enrolment, "RETRY_TOKEN_SECONDS", 0.01)
    monkeypatch.setattr("appliance.lifecycle.RETRY_SECONDS", (0.01,))
    monkeypatch.setattr("appliance.machine.image_epoch", lambda: 0.0)


@pytest.fixture
def config(tmp_path: Path) -> SupervisorConfig:
    return SupervisorConfig(state_dir=tmp_path / "state", run_dir=tmp_path / "run")


@contextlib.asynccontextmanager
async def running(
    config: SupervisorConfig,
    *,
    overlay: FakeOverlay | None = None,
    notifier: Notifier | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncIterator[Lab]:
    overlay = overlay or FakeOverlay()
    prepare_directories(config)
    supervisor = Supervisor(
        config,
        make_overlay=overlay.make,
        redactor=Redactor(TOKEN_PATTERNS),
        notifier=notifier or Notifier({}),
        console=Console(config.issue, config.run_dir / "reload"),
        wall_clock=wall_clock,
    )
    await supervisor.start()
    task = asyncio.create_task(supervisor.serve())
    try:
        yield Lab(supervisor, config, overlay)
    finally:
        supervisor.stop()
        await asyncio.wait_for(task, 30)


def hand_over(config: SupervisorConfig, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    (config.inbox / f".{name}").write_bytes(data)
    (config.inbox / f".{name}").rename(config.inbox / name)


# From token to ready


async def test_a_token_in_the_inbox_is_taken_at_any_time(
    config: SupervisorConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(config) as lab:
        assert (await lab.ask("GET", "/v1/health"))["healthy"] is True
        await lab.state(State.UNPROVISIONED)
        assert "Waiting for a token" in config.issue.read_text()
        hand_over(config, "usb-sdb1.token", token_text())
        await lab.state(State.READY)
        assert not list(config.inbox.iterdir())
        status = await lab.ask("GET", "/v1/status")
        assert status["network"] == "home"
        assert status["overlay"]["peers"][0]["name"] == "node-2"
        assert (await lab.ask("GET", "/v1/health")) == {
            "healthy": True,
            "state": "ready",
            "why": [],
        }
        await lab.until(lambda: "ready" in config.issue.read_text())
    assert lab.overlay.calls == ["start", "stop"]
    assert "token taken from /dev/sdb1" in caplog.text
    states = [r.skerry_state for r in caplog.records if "state " in r.getMessage()]  # type: ignore[attr-defined]
    assert states == ["provisioning", "joining", "ready"]


async def test_the_identity_outlives_the_process(config: SupervisorConfig) -> None:
    async with running(replace(config, name="kitchen")) as lab:
        answer = await lab.ask("POST", "/v1/token", token_text().encode())
        assert (answer["name"], answer["network"]) == ("kitchen", "home")
        await lab.state(State.READY)
    async with running(config) as again:
        await again.state(State.READY)
        status = await again.ask("GET", "/v1/status")
        assert (status["name"], status["node_id"]) == ("kitchen", answer["node_id"])


async def test_the_operators_name_is_shown(config: SupervisorConfig) -> None:
    async with running(replace(config, name="hall"), overlay=FakeOverlay(name="kitchen")) as lab:
        await lab.ask("POST", "/v1/token", token_text().encode())
        await lab.state(State.READY)
        assert (await lab.ask("GET", "/v1/status"))["name"] == "kitchen"
        assert "This is kitchen of network home" in config.issue.read_text()
        with pytest.raises(ApiError, match="this node already is kitchen of network home"):
            await lab.ask("POST", "/v1/token", token_text().encode())


async def test_a_second_token_is_refused(
    config: SupervisorConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(config) as lab:
        await lab.ask("POST", "/v1/token", token_text().encode())
        with pytest.raises(ApiError, match="this node already is skerry-") as caught:
            await lab.ask("POST", "/v1/token", token_text().encode())
        assert "erase its data partition" in (caught.value.hint or "")
        hand_over(config, "usb-sdb1.token", token_text())
        await lab.until(lambda: "usb-sdb1.token is not needed" in caplog.text)
        hand_over(config, "usb-sdc1.token", token_text())
        await lab.until(lambda: "usb-sdc1.token is not needed" in caplog.text)
        assert caplog.text.count("usb-sdb1.token is not needed") == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [("hall-3", "hall-3"), ("Not A Name", "skerry-"), ("", "skerry-"), ("\udcff", "skerry-")],
)
async def test_a_name_by_credential(
    config: SupervisorConfig, tmp_path: Path, given: str, expected: str
) -> None:
    (tmp_path / "skerry.name").write_bytes(os.fsencode(given) + b"\n")
    (tmp_path / "skerry.token").write_text(token_text())
    async with running(replace(config, credentials=tmp_path)) as lab:
        await lab.state(State.READY)
        assert lab.overlay.called[0].startswith(expected)


# Bad input


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"hello", "not a Skerry token", id="text"),
        pytest.param(os.urandom(500), "token", id="binary"),
        pytest.param(b"SKERRY1-" + b"A" * 100_000, "", id="oversized"),
        pytest.param(token_text()[:-9], "cut short", id="truncated"),
        pytest.param(token_text().replace("SKERRY1", "SKERRY9"), "", id="other-version"),
        pytest.param(token_text(expires=int(NOW) - 5, issued=NOW - 99), "expired", id="expired"),
    ],
)
async def test_a_bad_token_is_named_once_and_a_good_one_still_taken(
    config: SupervisorConfig,
    caplog: pytest.LogCaptureFixture,
    content: str | bytes,
    reason: str,
) -> None:
    async with running(config) as lab:
        hand_over(config, "mine.token", content)
        await lab.until(lambda: lab.supervisor.status().refused_tokens)
        (refused,) = lab.supervisor.status().refused_tokens
        assert "mine.token" in refused.where
        assert reason in refused.error
        assert refused.hint or content == b"SKERRY1-" + b"A" * 100_000
        for _ in range(3):
            await asyncio.sleep(0.003)
        assert caplog.text.count("can't be used") == 1
        await lab.until(lambda: "can't be used" in config.issue.read_text())
        hand_over(config, "other.token", token_text())
        await lab.state(State.READY)
        assert lab.supervisor.status().refused_tokens == ()


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00", b"SKERRY1-ABCDEFGH", b"x" * 60_000])
async def test_a_bad_token_by_api(config: SupervisorConfig, body: bytes) -> None:
    async with running(config) as lab:
        with pytest.raises(ApiError) as caught:
            await lab.ask("POST", "/v1/token", body)
        assert caught.value.hint
        assert lab.supervisor.status().state == "unprovisioned"


async def test_a_clock_of_1970(config: SupervisorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.lifecycle.SETTLE_SECONDS", 0.01)
    clock = [5.0]
    alone = FakeOverlay(peers=())
    async with running(config, overlay=alone, wall_clock=lambda: clock[0]) as lab:
        await lab.ask("POST", "/v1/token", token_text().encode())
        await lab.state(State.DEGRADED)
        assert lab.reasons() == ["clock"]
        assert "timedatectl" in lab.supervisor.status().reasons[0].hint
        await lab.until(lambda: lab.supervisor._facts.settled)
        assert (await lab.ask("GET", "/v1/health"))["healthy"] is True
        clock[0] = NOW
        await lab.state(State.READY)


async def test_a_clock_of_1970_among_members_is_worth_knowing(config: SupervisorConfig) -> None:
    async with running(config, wall_clock=lambda: 5.0) as lab:
        await lab.ask("POST", "/v1/token", token_text().encode())
        await lab.state(State.READY)
        assert [one.code for one in lab.supervisor.status().notices] == ["clock-by-members"]


async def test_a_corrupt_database_is_said_and_the_identity_stays(config: SupervisorConfig) -> None:
    async with running(config) as lab:
        node = (await lab.ask("POST", "/v1/token", token_text().encode()))["node_id"]
    config.database.write_bytes(b"garbage" * 1000)
    async with running(config) as lab:
        await lab.state(State.DEGRADED)
        assert lab.reasons() == ["state-lost"]
        assert lab.supervisor.status().node_id == node
        assert list(config.state_dir.glob("state.db.corrupt-*"))


async def test_a_lost_identity_is_said_and_a_token_heals_the_node(config: SupervisorConfig) -> None:
    async with running(config) as lab:
        await lab.ask("POST", "/v1/token", token_text().encode())
    for path in config.identity_dir.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    async with running(config) as lab:
        await lab.state(State.DEGRADED)
        (reason,) = lab.supervisor.status().reasons
        assert reason.code == "identity-lost"
        assert "keys" in reason.message
        assert "token" in reason.hint
        assert (await lab.ask("GET", "/v1/health"))["healthy"] is False
        hand_over(config, "new.token", token_text())
        await lab.until(lambda: lab.overlay.calls == ["start"])


async def test_one_damaged_copy_of_the_identity_is_repaired(
    config: SupervisorConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(config) as lab:
        node = (await lab.ask("POST", "/v1/token", token_text().encode()))["node_id"]
    (config.identity_dir / "identity.bin").write_bytes(b"")
    async with running(config) as lab:
        await lab.state(State.READY)
        assert lab.supervisor.status().node_id == node
    assert "identity.bin" in caplog.text


async def test_an_identity_that_can_not_be_written_is_tried_again(
    config: SupervisorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async with running(config) as lab:
        with monkeypatch.context() as patch:
            patch.setattr("provisioning.identity.write_all", full)
            # Not again while the one that comes by the API is looked at.
            patch.setattr(enrolment, "RETRY_TOKEN_SECONDS", 30.0)
            hand_over(config, "a.token", token_text())
            await lab.until(lambda: "identity-not-made" in lab.reasons())
            with pytest.raises(ApiError, match="No space left") as caught:
                await lab.ask("POST", "/v1/token", token_text().encode())
            assert "free some space" in (caught.value.hint or "")
        await lab.state(State.READY)


async def test_a_full_disk_degrades(
    config: SupervisorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(config) as lab:
        await lab.ask("POST", "/v1/token", token_text().encode())
        await lab.state(State.READY)
        monkeypatch.setattr("appliance.machine.free_bytes", lambda _: 1000)
        await lab.state(State.DEGRADED)
        assert lab.reasons() == ["disk-full"]
        monkeypatch.setattr("appliance.machine.free_bytes", lambda _: 10**9)
        await lab.state(State.READY)


async def test_what_the_initrd_said_of_the_data_partition(config: SupervisorConfig) -> None:
    prepare_directories(config)
    (config.run_dir / "data-trouble").write_text("the data partition sda7 cannot be mounted\n")
    async with running(config) as lab:
        await lab.until(lab.reasons)
        (reason,) = lab.supervisor.status().reasons
        assert reason.code == "data-partition"
        assert "sda7 cannot be mounted" in reason.message


# The edge below


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SkerryError("no WireGuard here", hint="load it"), "no WireGuard here"),
        (PermissionError(1, "Operation not permitted"), "Operation not permitted"),
        (KeyError("a defect"), "a defect (KeyError)"),
        (TimeoutError(), "did not start within 120 s"),
    ],
)
async def test_an_overlay_that_does_not_start_is_tried_again(
    config: SupervisorConfig, caplog: pytest.LogCaptureFixture, error: Exception, text: str
) -> None:
    overlay = FakeOverlay(failures=[error, error])
    async with running(config, overlay=overlay) as lab:
        await lab.ask("POST", "/v1/token", token_text().encode())
        await lab.until(lambda: overlay.calls[:4] == ["start", "stop", "start", "stop"])
        await lab.state(State.READY)
    assert text in caplog.text
    assert overlay.calls == ["start", "stop"] * 3


async def test_without_its_end_of_the_network_a_node_says_why_and_asks_for_no_token(
    config: SupervisorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.lifecycle.RETRY_SECONDS", (60.0,))
    overlay = FakeOverlay(failures=[SkerryError("no WireGuard here", hint="load it")])
    async with running(config, overlay=overlay) as lab:
        for path in ("/v1/nodes", "/v1/ledger", "/v1/secret", "/v1/cluster"):
            with pytest.raises(ApiError, match="no network yet"):
                await lab.ask("GET", path)
        await lab.ask("POST", "/v1/token", token_text().encode())
        await lab.until(lambda: overlay.calls == ["start", "stop"])
        for path in ("/v1/nodes", "/v1/ledger", "/v1/secret", "/v1/cluster"):
            with pytest.raises(ApiError, match="not now: no WireGuard here") as caught:
                await lab.ask("GET", path)
            assert (caught.value.status, caught.value.hint) == (409, "load it")


async def test_a_defect_in_the_round_is_loud_and_not_the_end(
    config: SupervisorConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(config) as lab:
        await lab.ask("POST", "/v1/token", token_text().encode())
        await lab.state(State.READY)
        lab.overlay.defect = KeyError("x")
        await lab.until(lambda: "a defect in the supervisor's round" in caplog.text)
        lab.overlay.defect = None
        lab.overlay.problems = (Problem("uplink", "no cable", "plug one in"),)
        await lab.state(State.DEGRADED)
        assert lab.reasons() == ["uplink"]


async def test_two_supervisors_on_one_state_are_one_too_many(config: SupervisorConfig) -> None:
    async with running(config):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("appliance.database.BUSY_SECONDS", 0)
            with pytest.raises(SkerryError, match="in use by another process"):
                async with running(replace(config, run_dir=config.run_dir / "second")):
                    pass


async def test_ready_status_and_watchdog_reach_the_service_manager(
    config: SupervisorConfig, tmp_path: Path
) -> None:
    messages: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        loop = asyncio.get_running_loop()
        # Read at once: the kernel keeps ten datagrams only.
        loop.add_reader(manager, lambda: messages.append(manager.recv(4096).decode()))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000"}
        notifier = Notifier(environment)
        async with running(config, notifier=notifier) as lab:
            await lab.ask("POST", "/v1/token", token_text().encode())
            await lab.state(State.READY)
            await lab.until(lambda: messages.count("WATCHDOG=1") >= 3)
        await lab.until(lambda: "STOPPING=1" in messages)
        loop.remove_reader(manager)
        notifier.close()
    assert "READY=1\nSTATUS=unprovisioned" in messages
    assert any("is ready" in message for message in messages)


async def test_a_stuck_round_starves_the_watchdog(
    config: SupervisorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, object]] = []
    notifier = Notifier({})
    notifier.watchdog_seconds = 0.006
    monkeypatch.setattr(notifier, "send", lambda **fields: sent.append(fields))
    async with running(config, notifier=notifier) as lab:
        await lab.until(lambda: {"WATCHDOG": 1} in sent)
        monkeypatch.setattr(supervisor_module, "STUCK_SECONDS", -1)
        sent.clear()
        await asyncio.sleep(0.02)
        assert {"WATCHDOG": 1} not in sent
