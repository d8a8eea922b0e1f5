"""``skerry update``: what a person sees, with RAUC faked on a real bus."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path

import pytest

from ota import commands
from ota.explain import explain
from ota.rauc import Rauc
from ota.status import collect, render
from ota.trial import Failures
from ota.update import Updates
from skerry.__main__ import main
from tests.fakes.rauc import FakeRauc, private_bus
from tests.unit.test_ota_records import BLOCK
from tests.unit.test_ota_trial import failure
from tests.unit.test_ota_update import Node


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with private_bus(tmp_path_factory.mktemp("bus")) as found:
        yield found


@pytest.fixture
def node(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Make a node whose commands talk to the fake, and whose caller is root."""
    node = Node(tmp_path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def updates() -> Updates:
        return Updates(node.files, say=node.said.append)

    monkeypatch.setattr(commands, "_updates", updates)
    return node


def with_fake(address: str, fake: FakeRauc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the fake on the loop of every connection that a command makes."""
    connect = Rauc.connect.__func__  # type: ignore[attr-defined]  # a classmethod's function

    class Serving:
        def __init__(self, bus: str | None = None) -> None:
            self.inner = connect(Rauc, bus)

        async def __aenter__(self) -> Rauc:
            await fake.serve(address)
            client: Rauc = await self.inner.__aenter__()
            return client

        async def __aexit__(self, *details: object) -> None:
            await self.inner.__aexit__(*details)
            await fake.stop()

    monkeypatch.setattr(Rauc, "connect", Serving)


def test_install(
    node: Node, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeRauc()
    with_fake(address, fake, monkeypatch)
    assert main(["update", "install", str(node.bundle), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"version": "2", "build_id": "b2", "slot": "B", "reboot": "needed"}
    assert "version 1 in slot A is kept" in err
    assert "100%" in err
    assert "returns to this system by itself" in err
    assert fake.methods() == [
        "Operation",
        "InspectBundle",
        "Compatible",
        "GetSlotStatus",
        "InstallBundle",
        "Mark",
    ]


def test_a_refused_bundle_is_two_lines(
    node: Node, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeRauc(compatible="skerry-other")
    with_fake(address, fake, monkeypatch)
    assert main(["update", "install", str(node.bundle)]) == 1
    err = capsys.readouterr().err
    assert "is for 'skerry-test', and this machine is 'skerry-other'" in err
    assert "Traceback" not in err
    assert "InstallBundle" not in fake.methods()


def test_status(
    node: Node, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.env.write_bytes(BLOCK)
    node.updates.records.save_failures(Failures(failures=(failure("2", "b2"),)))
    with_fake(address, FakeRauc(), monkeypatch)
    assert main(["update", "status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["standing"] == "committed"
    assert [(row["slot"], row["booted"], row["tries"]) for row in document["slots"]] == [
        ("A", True, 0),
        ("B", False, 3),
    ]
    assert main(["update", "status"]) == 0
    text = capsys.readouterr().out
    assert "version 1 in slot A: committed" in text
    assert "refused without --force: version 2" in text


def test_status_shows_an_installation_under_way(node: Node, address: str) -> None:
    async def ask() -> str:
        fake = await FakeRauc(operation="installing").serve(address)
        try:
            return render(await collect(node.updates, address))
        finally:
            await fake.stop()

    assert "RAUC is installing: 40 % (copying)" in asyncio.run(ask())


def test_status_without_rauc_tells_what_it_can(node: Node, tmp_path: Path) -> None:
    status = asyncio.run(collect(node.updates, f"unix:path={tmp_path}/none"))
    assert status["version"] == "1"
    assert "problem: the system bus cannot be reached" in render(status)


def test_status_after_a_roll_back_shows_the_post_mortem(node: Node, tmp_path: Path) -> None:
    node.install()
    node.env.write_bytes(BLOCK)
    node.boot("A", "back")
    node.settle()
    text = render(asyncio.run(collect(node.updates, f"unix:path={tmp_path}/none")))
    assert "version 2 was rolled back on 2027-01-15" in text
    assert "never came as far" in text


def test_trial_failed_asks_for_the_reboot_by_its_status(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ota.postmortem.run_command", lambda _: "")
    assert main(["update", "trial-failed"]) == 0
    node.install()
    node.boot("B", "trial", version="2")
    monkeypatch.setattr(Updates.trial_failed, "__kwdefaults__", {"run": lambda _: ""})
    assert main(["update", "trial-failed"]) == commands.REBOOT_NEEDED


def test_the_units_commands_go_through(
    node: Node, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRauc()
    with_fake(address, fake, monkeypatch)
    assert main(["update", "settle"]) == 0
    assert main(["update", "mark-good"]) == 0
    assert fake.calls == [("Mark", "good", "booted")] * 2
    assert main(["update", "rollback"]) == 1
    assert node.said == []


@pytest.mark.parametrize(
    "words",
    [["install", "x"], ["rollback"], ["settle"], ["mark-good"], ["trial-failed"]],
)
def test_only_root(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["update", *words]) == 1
    assert "run the command as root" in capsys.readouterr().err


def test_an_explanation_keeps_raucs_own_words() -> None:
    error = explain("line one\n line two: signature verification failed", doing="checking x")
    assert "line one line two" in str(error)
    assert "while checking x" in str(error)


def test_a_stopped_installation_says_what_that_means(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(coroutine: Coroutine[object, object, object]) -> None:
        coroutine.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "run", stop)
    assert main(["update", "install", str(node.bundle)]) == 130
    assert "the running system is untouched" in capsys.readouterr().err
