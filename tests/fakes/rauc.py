"""RAUC's D-Bus service, faked on a real private bus, with a log of every call.

The fake answers with plain messages, so that a test can also make it answer wrongly.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

SERVICE = "de.pengutronix.rauc"
INTERFACE = "de.pengutronix.rauc.Installer"
PROPERTIES = "org.freedesktop.DBus.Properties"
# The name that GLib gives an error which it does not know how to map.
GENERIC_ERROR = "org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code0"

_BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/>
    <allow send_type="method_call"/><allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="method_return"/>
    <allow receive_type="error"/><allow receive_type="signal"/>
  </policy>
  {more}
</busconfig>
"""


@contextmanager
def private_bus(directory: Path, *, more: str = "") -> Iterator[str]:
    """Run a bus of our own and yield its address; ``more`` is put into its configuration."""
    socket = directory / "bus"
    config = directory / "bus.conf"
    config.write_text(_BUS_CONFIG.format(socket=socket, more=more))
    with subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it cannot raise its limit of descriptors everywhere
        text=True,
    ) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline().startswith("unix:path=")
            yield f"unix:path={socket}"
        finally:
            daemon.terminate()


def slot(  # the keys are those of RAUC's GetSlotStatus
    bootname: str, name: str, *, state: str = "inactive", boot_status: str = "good", **more: str
) -> tuple[str, dict[str, Variant]]:
    facts = {
        "class": "rootfs",
        "device": f"/dev/disk/{name}",
        "type": "raw",
        "bootname": bootname,
        "state": state,
        "boot-status": boot_status,
        **{key.replace("_", "."): value for key, value in more.items()},
    }
    return name, {key: Variant("s", value) for key, value in facts.items()}


def child(name: str, parent: str) -> tuple[str, dict[str, Variant]]:
    return name, {"class": Variant("s", "boot"), "parent": Variant("s", parent)}


@dataclass
class FakeRauc:
    """The service. ``calls`` logs the methods; ``errors`` and ``replies`` override answers."""

    compatible: str = "skerry-test"
    slots: list[tuple[str, dict[str, Variant]]] = field(
        default_factory=lambda: [
            slot("B", "rootfs.1"),
            child("boot.0", "rootfs.0"),
            slot("A", "rootfs.0", state="booted", bundle_version="1", bundle_build="b1"),
        ]
    )
    bundle: dict[str, Any] = field(
        default_factory=lambda: {
            "manifest-hash": Variant("s", "00"),
            "update": Variant(
                "a{sv}",
                {
                    "compatible": Variant("s", "skerry-test"),
                    "version": Variant("s", "2"),
                    "build": Variant("s", "b2"),
                    "description": Variant("s", ""),
                },
            ),
        }
    )
    operation: str = "idle"
    last_error: str = ""
    result: int = 0
    steps: tuple[int, ...] = (0, 20, 90, 100)
    failing_step: str = ""
    errors: dict[str, tuple[str, str]] = field(default_factory=dict)
    replies: dict[str, tuple[str, list[Any]]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    die_while_installing: bool = False
    forget_completed: bool = False
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    _bus: MessageBus | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, address: str) -> FakeRauc:
        self._bus = await MessageBus(bus_address=address).connect()
        self._bus.add_message_handler(self._handle)
        await self._bus.request_name(SERVICE)
        return self

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._bus and self._bus.connected:
            await self._bus.release_name(SERVICE)
            self._bus.disconnect()

    def methods(self) -> list[str]:
        return [str(call[0]) for call in self.calls]

    def _handle(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        if message.interface not in {INTERFACE, PROPERTIES}:
            return None
        member = message.member or ""
        name = message.body[1] if member == "Get" else member
        self.calls.append((name, *(message.body if member != "Get" else ())))
        if name in self.silent:
            return True
        if name in self.errors:
            return Message.new_error(message, *self.errors[name])
        signature, body = self.replies.get(name) or self._answer(name)
        if name == "InstallBundle":
            self.operation = "installing"
            task = asyncio.get_running_loop().create_task(self._install())
            self._tasks.add(task)
        return Message.new_method_return(message, signature, body)

    def _answer(self, name: str) -> tuple[str, list[Any]]:
        values: dict[str, tuple[str, list[Any]]] = {
            "GetSlotStatus": ("a(sa{sv})", [[list(row) for row in self.slots]]),
            "GetPrimary": ("s", ["rootfs.0"]),
            "InspectBundle": ("a{sv}", [self.bundle]),
            "Mark": ("ss", ["rootfs.1", "marked slot"]),
            "InstallBundle": ("", []),
            "Operation": ("v", [Variant("s", self.operation)]),
            "LastError": ("v", [Variant("s", self.last_error)]),
            "Compatible": ("v", [Variant("s", self.compatible)]),
            "BootSlot": ("v", [Variant("s", "A")]),
            "Progress": ("v", [Variant("(isi)", [40, "copying", 2])]),
        }
        return values[name]

    async def _install(self) -> None:
        steps = [(step, "copying") for step in self.steps]
        if self.failing_step:
            steps.append((100, self.failing_step))
        for percent, message in steps:
            self._signal(
                PROPERTIES,
                "PropertiesChanged",
                "sa{sv}as",
                [INTERFACE, {"Progress": Variant("(isi)", [percent, message, 1])}, []],
            )
        if self.die_while_installing:
            assert self._bus is not None
            self._bus.disconnect()
            return
        self.operation = "idle"
        if not self.forget_completed:
            self._signal(INTERFACE, "Completed", "i", [self.result])

    def _signal(self, interface: str, member: str, signature: str, body: list[Any]) -> None:
        assert self._bus is not None
        self._bus.send(
            Message(
                message_type=MessageType.SIGNAL,
                path="/",
                interface=interface,
                member=member,
                signature=signature,
                body=body,
            )
        )
