"""The service manager over D-Bus (systemd's org.freedesktop.systemd1): start, stop, ask.

Plain messages without introspection. The connection is made when it is needed and made anew when
it broke; every failure is a `UnitError`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from dbus_fast import BusType, DBusFastError, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from appliance.kubernetes.errors import UnitError
from appliance.kubernetes.keeper import Unit, UnitFacts

SERVICE = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER = f"{SERVICE}.Manager"
CALL_SECONDS = 30.0
_HINT = "systemctl status dbus; the cluster agent needs the system bus"


class Units(Protocol):
    """What the keeper's steps are performed by."""

    async def facts(self, *units: str) -> tuple[UnitFacts, ...]:
        """Return what is so now, in the order asked. Raises UnitError."""

    async def start(self, unit: str) -> None:
        """Ask for a start, without waiting for it. Raises UnitError."""

    async def restart(self, unit: str) -> None:
        """Ask for a restart, or a start. Raises UnitError."""

    async def stop(self, unit: str) -> None:
        """Ask for a stop. Raises UnitError."""

    async def close(self) -> None:
        """Give back what was used."""


class Systemd:
    """The machine's systemd."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._bus: MessageBus | None = None

    async def facts(self, *units: str) -> tuple[UnitFacts, ...]:
        """Return what is so now, in the order asked."""
        (rows,) = await self._call(
            PATH, MANAGER, "ListUnitsByNames", "as", [list(units)], "a(ssssssouso)"
        )
        found = {str(row[0]): await self._facts(row) for row in rows}
        missing = UnitFacts(Unit.MISSING)
        return tuple(found.get(one, missing) for one in units)

    async def _facts(self, row: list[Any]) -> UnitFacts:
        name, _, load, active, sub, _, path, job, *_ = row
        if load != "loaded":
            return UnitFacts(Unit.MISSING)
        state = _state(active, sub)
        if job and state in {Unit.INACTIVE, Unit.FAILED}:
            # It waits for what comes before it: container images are being imported, say.
            return UnitFacts(Unit.ACTIVATING)
        if state in {Unit.ACTIVE, Unit.INACTIVE} or not name.endswith(".service"):
            return UnitFacts(state)
        return UnitFacts(
            state,
            str(await self._property(path, f"{SERVICE}.Service", "Result")),
            int(await self._property(path, f"{SERVICE}.Service", "NRestarts")),
        )

    async def start(self, unit: str) -> None:
        """Ask for a start; a unit that failed too often may again."""
        await self._call(PATH, MANAGER, "ResetFailedUnit", "s", [unit], "", lenient=True)
        await self._call(PATH, MANAGER, "StartUnit", "ss", [unit, "replace"], "o")

    async def restart(self, unit: str) -> None:
        """Ask for a restart."""
        await self._call(PATH, MANAGER, "RestartUnit", "ss", [unit, "replace"], "o")

    async def stop(self, unit: str) -> None:
        """Ask for a stop."""
        await self._call(PATH, MANAGER, "StopUnit", "ss", [unit, "replace"], "o")

    async def close(self) -> None:
        """Leave the bus."""
        if self._bus is not None:
            self._bus.disconnect()
            self._bus = None

    async def _property(self, path: str, interface: str, name: str) -> Any:  # noqa: ANN401
        (found,) = await self._call(
            path, "org.freedesktop.DBus.Properties", "Get", "ss", [interface, name], "v"
        )
        return found.value if isinstance(found, Variant) else found

    async def _call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: list[Any],
        expected: str,
        *,
        lenient: bool = False,
    ) -> list[Any]:
        message = Message(
            destination=SERVICE,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
        )
        try:
            async with asyncio.timeout(CALL_SECONDS):
                reply = await (await self._connected()).call(message)
        except (OSError, DBusFastError, EOFError, TimeoutError, ValueError, TypeError) as error:
            await self.close()
            raise UnitError(
                f"systemd can't be asked ({member}): {str(error) or type(error).__name__}",
                hint=_HINT,
            ) from error
        if reply is None:
            raise UnitError(f"systemd did not answer {member}", hint=_HINT)
        if reply.message_type is MessageType.ERROR:
            if lenient:
                return []
            said = reply.body[0] if reply.body else reply.error_name
            raise UnitError(f"systemd refused {member} {' '.join(map(str, body))}: {said}")
        if reply.signature != expected:
            if lenient:
                return []
            raise UnitError(f"systemd answered {member} with {reply.signature!r}")
        return list(reply.body)

    async def _connected(self) -> MessageBus:
        if self._bus is None or not self._bus.connected:
            self._bus = await MessageBus(
                bus_address=self._address, bus_type=BusType.SYSTEM, auth_timeout=CALL_SECONDS
            ).connect()
        return self._bus


def _state(active: object, sub: object) -> Unit:
    if active == "activating" and sub in {"auto-restart", "auto-restart-queued"}:
        return Unit.RETRYING
    if active == "reloading":
        return Unit.ACTIVE
    try:
        return Unit(str(active))
    except ValueError:
        return Unit.INACTIVE
