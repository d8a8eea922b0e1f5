"""Client of RAUC's D-Bus service, RAUC 1.13 (source: RAUC manual, "D-Bus API").

Everything goes out as plain messages, without introspection: half the round trips, which counts
under emulation. Signals are subscribed to before an installation begins, so that none is missed.

>>> async with Rauc.connect() as rauc:
...     print(await rauc.slots())
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from dbus_fast import BusType, DBusFastError, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from ota.errors import OtaError, Trouble
from ota.explain import explain
from ota.installer import BundleInfo, Mark, Progress, Slot

SERVICE = "de.pengutronix.rauc"
INTERFACE = "de.pengutronix.rauc.Installer"
PATH = "/"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_BUS = "org.freedesktop.DBus"

CALL_SECONDS = 120.0  # a cold RAUC reads grubenv through a helper program per slot: slow emulated
CHECK_SECONDS = 600.0
STALL_SECONDS = 30.0  # how often a silent installation is asked whether it still runs

_MATCHES = (
    f"type='signal',sender='{SERVICE}',interface='{INTERFACE}',path='{PATH}'",
    f"type='signal',sender='{SERVICE}',interface='{_PROPERTIES}',path='{PATH}'",
    f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{SERVICE}'",
)


class Rauc:
    """A connection to RAUC's service. Every failure is an :class:`OtaError` in clear words."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus

    @classmethod
    @asynccontextmanager
    async def connect(cls, address: str | None = None) -> AsyncIterator[Rauc]:
        """Connect to the system bus, or to the bus at ``address``."""
        try:
            bus = await MessageBus(
                bus_address=address, bus_type=BusType.SYSTEM, auth_timeout=CALL_SECONDS
            ).connect()
        except (OSError, DBusFastError, ValueError, TypeError, EOFError) as error:
            raise OtaError(
                f"the system bus cannot be reached: {error}",
                hint="this command is for a Skerry node; there, look at `systemctl status dbus`",
                trouble=Trouble.NO_SERVICE,
            ) from error
        try:
            yield cls(bus)
        finally:
            bus.disconnect()

    async def slots(self) -> tuple[Slot, ...]:
        """Return every slot, ordered by name."""
        (rows,) = await self._call("GetSlotStatus", "a(sa{sv})")
        return tuple(sorted((_slot(name, facts) for name, facts in rows), key=lambda s: s.name))

    async def primary(self) -> str:
        """Return the name of the slot that the boot loader takes next, as RAUC judges it."""
        (name,) = await self._call("GetPrimary", "s")
        return str(name)

    async def operation(self) -> str:
        """Return ``idle`` or ``installing``."""
        return str(await self._property("Operation"))

    async def last_error(self) -> str:
        """Return the text of the last failed installation."""
        return str(await self._property("LastError"))

    async def compatible(self) -> str:
        """Return which bundles this system takes."""
        return str(await self._property("Compatible"))

    async def boot_slot(self) -> str:
        """Return the boot name of the running slot."""
        return str(await self._property("BootSlot"))

    async def progress(self) -> Progress:
        """Return how far the current or last operation got."""
        return _progress(await self._property("Progress"))

    async def inspect(self, bundle: str) -> BundleInfo:
        """Check a bundle's signature and return what its manifest says; writes nothing."""
        (info,) = await self._call(
            "InspectBundle",
            "a{sv}",
            signature="sa{sv}",
            body=[bundle, {}],
            timeout=CHECK_SECONDS,
            doing=f"checking {bundle}",
        )
        plain = _plain_dict(info)
        update = _plain_dict(plain.get("update"))
        if not update.get("compatible"):
            raise OtaError(
                f"{bundle} has no [update] section that RAUC could read",
                hint="build it with `skerry bundle build`",
                trouble=Trouble.TRUNCATED,
            )
        return BundleInfo(
            compatible=str(update["compatible"]),
            version=str(update.get("version", "")),
            build_id=str(update.get("build", "")),
            description=str(update.get("description", "")),
            manifest_hash=str(plain.get("manifest-hash", "")),
        )

    async def mark(self, mark: Mark, slot: str) -> str:
        """Mark a slot ("rootfs.1", "booted", "other"); return RAUC's message."""
        _, message = await self._call(
            "Mark",
            "ss",
            signature="ss",
            body=[mark.value, slot],
            doing=f"marking slot {slot} as {mark.value}",
        )
        return str(message)

    async def install(
        self,
        bundle: str,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        ignore_compatible: bool = False,
    ) -> None:
        """Install a bundle into the other slot and return when RAUC has finished.

        If this is cancelled, RAUC goes on by itself. Raises OtaError with RAUC's LastError.
        """
        watch = _Watch(on_progress)
        self._bus.add_message_handler(watch)
        try:
            for match in _MATCHES:
                await self._match("AddMatch", match)
            arguments = {"ignore-compatible": Variant("b", value=True)} if ignore_compatible else {}
            await self._call(
                "InstallBundle",
                "",
                signature="sa{sv}",
                body=[bundle, arguments],
                doing=f"starting to install {bundle}",
            )
            result = await self._completed(watch, bundle)
            if result != 0:
                raise explain(await self.last_error(), doing=f"installing {bundle}")
        finally:
            self._bus.remove_message_handler(watch)

    async def _completed(self, watch: _Watch, bundle: str) -> int:
        idle = 0
        while True:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    return await asyncio.shield(watch.result)
            except TimeoutError:
                pass
            # Completed may have been lost with the service; two idle answers in a row tell.
            idle = idle + 1 if await self.operation() == "idle" else 0
            if idle >= 2:
                raise explain(
                    await self.last_error() or "it stopped without a result",
                    doing=f"installing {bundle}",
                )

    async def _match(self, member: str, rule: str) -> None:
        await self._send(
            Message(
                destination=_BUS,
                path="/org/freedesktop/DBus",
                interface=_BUS,
                member=member,
                signature="s",
                body=[rule],
            ),
            CALL_SECONDS,
            "subscribing to RAUC's signals",
        )

    async def _property(self, name: str) -> object:
        reply = await self._send(
            Message(
                destination=SERVICE,
                path=PATH,
                interface=_PROPERTIES,
                member="Get",
                signature="ss",
                body=[INTERFACE, name],
            ),
            CALL_SECONDS,
            f"asking for {name}",
        )
        _expect(reply, "v", f"Get {name}")
        return _plain(reply.body[0])

    async def _call(
        self,
        member: str,
        expected: str,
        *,
        signature: str = "",
        body: list[Any] | None = None,
        timeout: float = CALL_SECONDS,
        doing: str = "",
    ) -> list[Any]:
        message = Message(
            destination=SERVICE,
            path=PATH,
            interface=INTERFACE,
            member=member,
            signature=signature,
            body=body or [],
        )
        reply = await self._send(message, timeout, doing or f"calling {member}")
        _expect(reply, expected, member)
        return list(reply.body)

    async def _send(self, message: Message, timeout: float, doing: str) -> Message:
        try:
            async with asyncio.timeout(timeout):
                reply = await self._bus.call(message)
        except TimeoutError:
            raise explain(
                "", error_name="org.freedesktop.DBus.Error.NoReply", doing=doing
            ) from None
        except (OSError, EOFError, DBusFastError) as error:
            raise explain(
                str(error), error_name="org.freedesktop.DBus.Error.Disconnected", doing=doing
            ) from error
        if reply is None:
            raise explain("", error_name="org.freedesktop.DBus.Error.NoReply", doing=doing)
        if reply.message_type is MessageType.ERROR:
            text = str(reply.body[0]) if reply.body else ""
            raise explain(text, error_name=reply.error_name or "", doing=doing)
        return reply


class _Watch:
    """Hears the signals of one installation; called by the bus for every incoming message."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self.result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._on_progress = on_progress

    def __call__(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        key = (message.interface, message.member, message.signature)
        if key == (INTERFACE, "Completed", "i"):
            self._finish(int(message.body[0]))
        elif key == (_PROPERTIES, "PropertiesChanged", "sa{sv}as"):
            changed = message.body[1].get("Progress")
            if changed is not None and self._on_progress:
                progress = _progress(_plain(changed))
                # A failure ends at 100 percent too, which would be a lie in a progress bar.
                if not progress.message.endswith("failed."):
                    self._on_progress(progress)
        elif key == (_BUS, "NameOwnerChanged", "sss"):
            name, _, new_owner = message.body
            if name == SERVICE and not new_owner:
                self._lost()

    def _lost(self) -> None:
        if not self.result.done():
            self.result.set_exception(
                OtaError(
                    "RAUC's service stopped in the middle of the installation",
                    hint="the running slot is untouched; look at `journalctl -u rauc.service` "
                    "and start the installation again",
                    trouble=Trouble.NO_SERVICE,
                )
            )

    def _finish(self, result: int) -> None:
        if not self.result.done():
            self.result.set_result(result)


def _expect(reply: Message, signature: str, member: str) -> None:
    if reply.signature != signature:
        raise OtaError(
            f"RAUC answered {member} with signature {reply.signature!r} instead of {signature!r}",
            hint="this node speaks RAUC 1.13's D-Bus interface; is another version installed?",
        )


def _plain(value: object) -> object:
    """Return the value without D-Bus variants, at every depth."""
    if isinstance(value, Variant):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _plain_dict(value: object) -> dict[str, object]:
    plain = _plain(value)
    return plain if isinstance(plain, dict) else {}


def _slot(name: str, facts: dict[str, Variant]) -> Slot:
    plain = _plain_dict(facts)

    def text(key: str) -> str:
        return str(plain.get(key, ""))

    return Slot(
        name=name,
        slot_class=text("class"),
        bootname=text("bootname"),
        device=text("device"),
        parent=text("parent"),
        state=text("state"),
        boot_status=text("boot-status"),
        version=text("bundle.version"),
        build_id=text("bundle.build"),
        installed_at=text("installed.timestamp"),
    )


def _progress(value: object) -> Progress:
    if not (isinstance(value, list) and len(value) == 3 and isinstance(value[0], int)):
        return Progress(0, "", 0)
    return Progress(min(max(value[0], 0), 100), str(value[1]), int(value[2]))
