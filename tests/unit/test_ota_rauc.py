"""The D-Bus client against a fake RAUC on a real bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from dbus_fast import Variant

from ota import rauc as rauc_module
from ota.errors import OtaError, Trouble
from ota.installer import BundleInfo, Mark, Progress
from ota.rauc import Rauc
from tests.fakes.rauc import GENERIC_ERROR, FakeRauc, private_bus, slot

T = TypeVar("T")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with private_bus(tmp_path_factory.mktemp("bus")) as found:
        yield found


def talk(address: str, fake: FakeRauc | None, use: Callable[[Rauc], Awaitable[T]]) -> T:
    async def conversation() -> T:
        if fake:
            await fake.serve(address)
        try:
            async with asyncio.timeout(10), Rauc.connect(address) as client:
                return await use(client)
        finally:
            if fake:
                await fake.stop()

    return asyncio.run(conversation())


def trouble(address: str, fake: FakeRauc | None, use: Callable[[Rauc], Awaitable[T]]) -> OtaError:
    with pytest.raises(OtaError) as caught:
        talk(address, fake, use)
    assert caught.value.hint
    return caught.value


def test_slots_come_typed_and_ordered(address: str) -> None:
    slots = talk(address, FakeRauc(), lambda rauc: rauc.slots())
    assert [one.name for one in slots] == ["boot.0", "rootfs.0", "rootfs.1"]
    assert slots[0].parent == "rootfs.0"
    assert slots[0].bootname == ""
    assert (slots[1].bootname, slots[1].state, slots[1].version, slots[1].build_id) == (
        "A",
        "booted",
        "1",
        "b1",
    )


def test_properties(address: str) -> None:
    async def ask(rauc: Rauc) -> tuple[object, ...]:
        return (
            await rauc.operation(),
            await rauc.last_error(),
            await rauc.compatible(),
            await rauc.boot_slot(),
            await rauc.primary(),
            await rauc.progress(),
        )

    assert talk(address, FakeRauc(last_error="x"), ask) == (
        "idle",
        "x",
        "skerry-test",
        "A",
        "rootfs.0",
        Progress(40, "copying", 2),
    )


def test_inspect(address: str) -> None:
    info = talk(address, FakeRauc(), lambda rauc: rauc.inspect("/x"))
    assert info == BundleInfo("skerry-test", "2", "b2", "", "00")


def test_mark_passes_state_and_slot(address: str) -> None:
    fake = FakeRauc()
    assert talk(address, fake, lambda rauc: rauc.mark(Mark.ACTIVE, "rootfs.1")) == "marked slot"
    assert fake.calls == [("Mark", "active", "rootfs.1")]


def test_install_reports_progress_and_misses_no_signal(address: str) -> None:
    fake = FakeRauc()
    seen: list[int] = []
    talk(
        address,
        fake,
        lambda rauc: rauc.install("/x", on_progress=lambda progress: seen.append(progress.percent)),
    )
    assert seen == [0, 20, 90, 100]
    assert fake.calls == [("InstallBundle", "/x", {})]


def test_a_failure_does_not_fill_the_progress_bar(address: str) -> None:
    seen: list[int] = []
    fake = FakeRauc(result=1, steps=(0, 20), failing_step="Installing failed.")
    trouble(
        address,
        fake,
        lambda rauc: rauc.install("/x", on_progress=lambda progress: seen.append(progress.percent)),
    )
    assert seen == [0, 20]


def test_install_can_ignore_the_compatible(address: str) -> None:
    fake = FakeRauc()
    talk(address, fake, lambda rauc: rauc.install("/x", ignore_compatible=True))
    assert fake.calls[0][2] == {"ignore-compatible": Variant("b", value=True)}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("signature verification failed: Verify error: self-signed certificate", Trouble.SIGNATURE),
        ("Compatible mismatch: Expected 'a' but bundle manifest has 'b'", Trouble.COMPATIBLE),
        ("failed to write: No space left on device", Trouble.SPACE),
        (
            "Invalid bundle format: Signature size (7957085066972967886) exceeds bundle size",
            Trouble.TRUNCATED,
        ),
        ("Slot (1048576 bytes) is too small for image (2097152 bytes).", Trouble.SPACE),
        ("something quite new", Trouble.OTHER),
    ],
)
def test_a_failed_installation_tells_why(address: str, words: str, kind: Trouble) -> None:
    error = trouble(
        address, FakeRauc(result=1, last_error=words), lambda rauc: rauc.install("/b.raucb")
    )
    assert error.trouble is kind
    assert words in str(error)
    assert "/b.raucb" in str(error)


@pytest.mark.parametrize(
    ("name", "words", "kind"),
    [
        (GENERIC_ERROR, "already processing a different method", Trouble.BUSY),
        (
            "org.freedesktop.DBus.Error.AccessDenied",
            "Rejected send message",
            Trouble.NOT_AUTHORISED,
        ),
        ("org.freedesktop.DBus.Error.Spawn.ChildExited", "exited", Trouble.NO_SERVICE),
        (GENERIC_ERROR, "", Trouble.OTHER),
    ],
)
def test_method_errors(address: str, name: str, words: str, kind: Trouble) -> None:
    fake = FakeRauc(errors={"InstallBundle": (name, words)})
    assert trouble(address, fake, lambda rauc: rauc.install("/x")).trouble is kind


def test_no_service_on_the_bus(address: str) -> None:
    error = trouble(address, None, lambda rauc: rauc.operation())
    assert error.trouble is Trouble.NO_SERVICE


def test_no_bus_at_all(tmp_path: Path) -> None:
    error = trouble(f"unix:path={tmp_path}/none", None, lambda rauc: rauc.operation())
    assert error.trouble is Trouble.NO_SERVICE
    error = trouble("nonsense", None, lambda rauc: rauc.operation())
    assert error.trouble is Trouble.NO_SERVICE


def test_the_service_dies_while_it_installs(address: str) -> None:
    fake = FakeRauc(die_while_installing=True)
    error = trouble(address, fake, lambda rauc: rauc.install("/x"))
    assert error.trouble is Trouble.NO_SERVICE
    assert "untouched" in (error.hint or "")


def test_a_lost_result_does_not_hang(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rauc_module, "STALL_SECONDS", 0.01)
    fake = FakeRauc(forget_completed=True, last_error="No space left on device")
    error = trouble(address, fake, lambda rauc: rauc.install("/x"))
    assert error.trouble is Trouble.SPACE
    assert fake.methods().count("Operation") >= 2


def test_no_answer_is_not_waited_for_forever(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rauc_module, "CALL_SECONDS", 0.02)
    fake = FakeRauc(silent={"Operation"})
    error = trouble(address, fake, lambda rauc: rauc.operation())
    assert error.trouble is Trouble.TIMEOUT


@pytest.mark.parametrize(
    ("member", "reply"),
    [
        ("GetSlotStatus", ("s", ["?"])),
        ("InspectBundle", ("", [])),
        ("InspectBundle", ("a{sv}", [{}])),
        ("InspectBundle", ("a{sv}", [{"update": Variant("s", "flat")}])),
    ],
)
def test_unexpected_answers_are_said(
    address: str, member: str, reply: tuple[str, list[object]]
) -> None:
    calls: dict[str, Callable[[Rauc], Awaitable[object]]] = {
        "GetSlotStatus": lambda rauc: rauc.slots(),
        "InspectBundle": lambda rauc: rauc.inspect("/x"),
    }
    trouble(address, FakeRauc(replies={member: reply}), calls[member])


def test_progress_of_a_strange_shape_is_nothing(address: str) -> None:
    fake = FakeRauc(replies={"Progress": ("v", [Variant("s", "half")])})
    assert talk(address, fake, lambda rauc: rauc.progress()) == Progress(0, "", 0)
    fake = FakeRauc(replies={"Progress": ("v", [Variant("(isi)", [900, "", 0])])})
    assert talk(address, fake, lambda rauc: rauc.progress()).percent == 100


def test_a_slot_without_facts_is_a_slot(address: str) -> None:
    (only,) = talk(address, FakeRauc(slots=[("odd.0", {})]), lambda rauc: rauc.slots())
    assert (only.name, only.bootname) == ("odd.0", "")
    assert slot("A", "x")[0] == "x"
