"""The service manager over a real private bus, with something that answers as systemd does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from appliance.kubernetes.errors import UnitError
from appliance.kubernetes.keeper import Unit, UnitFacts
from appliance.kubernetes.places import PODS_SLICE, SERVER_UNIT
from appliance.kubernetes.units import SERVICE, Systemd
from tests.fakes.rauc import private_bus

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with private_bus(Path(tmp_path_factory.mktemp("bus"))) as address:
        yield address


@dataclass
class FakeSystemd:
    """One unit's properties, and a log of calls."""

    active: str = "active"
    sub: str = "running"
    load: str = "loaded"
    job: int = 0
    calls: list[tuple[str, list[object]]] = field(default_factory=list)
    bus: MessageBus | None = None
    refuse: str = ""

    async def start(self, address: str) -> None:
        self.bus = await MessageBus(bus_address=address).connect()
        self.bus.add_message_handler(self._answer)
        await self.bus.request_name(SERVICE)

    def stop(self) -> None:
        assert self.bus is not None
        self.bus.disconnect()

    def _answer(self, message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.destination != SERVICE:
            return None
        member = str(message.member)
        self.calls.append((member, list(message.body)))
        if member == self.refuse:
            return Message.new_error(message, f"{SERVICE}.Refused", "no such luck")
        if member == "ListUnitsByNames":
            path = "/org/freedesktop/systemd1/unit/x"
            about = [self.load, self.active, self.sub, "", path, self.job, "", "/"]
            rows = [[name, "a unit", *about] for name in message.body[0]]
            return Message.new_method_return(message, "a(ssssssouso)", [rows])
        if member == "Get":
            found = {"Result": Variant("s", "exit-code"), "NRestarts": Variant("u", 3)}
            return Message.new_method_return(message, "v", [found[message.body[1]]])
        if member == "ResetFailedUnit":
            return Message.new_method_return(message)
        return Message.new_method_return(message, "o", ["/org/freedesktop/systemd1/unit/x"])


@pytest.mark.parametrize(
    ("active", "sub", "state"),
    [
        ("active", "running", Unit.ACTIVE),
        ("reloading", "reload", Unit.ACTIVE),
        ("activating", "start", Unit.ACTIVATING),
        ("activating", "auto-restart", Unit.RETRYING),
        ("activating", "auto-restart-queued", Unit.RETRYING),
        ("deactivating", "stop-sigterm", Unit.DEACTIVATING),
        ("failed", "failed", Unit.FAILED),
        ("inactive", "dead", Unit.INACTIVE),
        ("maintenance", "new", Unit.INACTIVE),
    ],
)
async def test_states(bus: str, active: str, sub: str, state: Unit) -> None:
    fake, systemd = FakeSystemd(active, sub), Systemd(bus)
    await fake.start(bus)
    try:
        service, pods = await systemd.facts(SERVER_UNIT, PODS_SLICE)
        quiet = {Unit.ACTIVE, Unit.INACTIVE}
        assert service == (UnitFacts(state) if state in quiet else UnitFacts(state, "exit-code", 3))
        # A slice has nothing of a service.
        assert pods == UnitFacts(state)
    finally:
        await systemd.close()
        fake.stop()


async def test_a_unit_that_waits_for_others_is_on_its_way(bus: str) -> None:
    fake, systemd = FakeSystemd("inactive", "dead", job=627), Systemd(bus)
    await fake.start(bus)
    try:
        assert await systemd.facts(SERVER_UNIT) == (UnitFacts(Unit.ACTIVATING),)
    finally:
        await systemd.close()
        fake.stop()


async def test_what_is_asked_for(bus: str) -> None:
    fake, systemd = FakeSystemd(), Systemd(bus)
    await fake.start(bus)
    try:
        await systemd.start(SERVER_UNIT)
        await systemd.restart(SERVER_UNIT)
        await systemd.stop(SERVER_UNIT)
        fake.load = "not-found"
        assert await systemd.facts(SERVER_UNIT) == (UnitFacts(Unit.MISSING),)
        fake.refuse = "ResetFailedUnit"  # systemd does so for a unit that is not loaded
        await systemd.start(SERVER_UNIT)
        fake.refuse = "StartUnit"
        with pytest.raises(UnitError, match="no such luck"):
            await systemd.start(SERVER_UNIT)
    finally:
        await systemd.close()
        fake.stop()
    assert fake.calls[:4] == [
        ("ResetFailedUnit", [SERVER_UNIT]),
        ("StartUnit", [SERVER_UNIT, "replace"]),
        ("RestartUnit", [SERVER_UNIT, "replace"]),
        ("StopUnit", [SERVER_UNIT, "replace"]),
    ]


async def test_a_systemd_or_a_bus_that_is_away_is_an_error_and_passes(
    bus: str, tmp_path: Path
) -> None:
    systemd = Systemd(bus)
    with pytest.raises(UnitError):
        await systemd.facts(SERVER_UNIT)
    fake = FakeSystemd()
    await fake.start(bus)
    try:
        assert await systemd.facts(SERVER_UNIT) == (UnitFacts(Unit.ACTIVE),)
    finally:
        await systemd.close()
        fake.stop()
    nowhere = Systemd(f"unix:path={tmp_path}/none")
    with pytest.raises(UnitError, match="can't be asked"):
        await nowhere.facts(SERVER_UNIT)
