"""A machine in QEMU, as a state machine that a test or a lab drives.

::

    with Machine(spec, directory, accelerator=tcg(spec.arch)) as machine:
        machine.start()
        machine.serial.wait_for("login:", timeout=600)
        machine.run("true").check()

Needs no root where user namespaces are allowed. A machine that is *owned* ends with the thread that
started it; others stay up until somebody ends them (``skerry lab``).
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from image.tools import ToolsRoot
from qemu import prepare
from qemu.agent import AgentClient, Job, Result
from qemu.errors import AgentError, MachineError, QmpError, WaitTimeoutError
from qemu.process import ProcessId
from qemu.qmp import QmpClient, QmpEvent
from qemu.serial import SerialLog, last_lines
from qemu.spec import (
    AGENT_CHANNELS,
    SOCKETS_HOME,
    Accelerator,
    DiskMode,
    MachinePaths,
    MachineSpec,
    qemu_arguments,
)

_START_SECONDS = 60.0


class State(StrEnum):
    """Where a machine is."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    PANICKED = "panicked"
    """The guest's kernel panicked and has not restarted yet."""
    SHUT_DOWN = "shut down"
    """The guest switched itself off and QEMU is about to end."""


EXIT = QmpEvent("EXIT")
"""QEMU's process has ended; ours, not QEMU's."""


def following(state: State, event: QmpEvent) -> State:
    """Return the state after an event (QEMU's QMP reference names them; others change nothing)."""
    match event.name:
        case "EXIT":
            return State.OFF
        case "SHUTDOWN":
            return State.SHUT_DOWN
        case "RESET" | "RESUME" if state is not State.SHUT_DOWN:
            return State.RUNNING
        case "STOP" if state is State.RUNNING:
            return State.PAUSED
        case "GUEST_PANICKED" if state is State.RUNNING:
            return State.PANICKED
    return state


class Machine:
    """One machine; its files stay in ``directory`` after it has ended."""

    def __init__(
        self,
        spec: MachineSpec,
        directory: Path,
        *,
        accelerator: Accelerator,
        tools: ToolsRoot | None = None,
        owned: bool = True,
        sockets: Path | None = None,
    ) -> None:
        self.spec = spec
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        # A checkout may lie so deep that a socket's path in it is too long.
        own = sockets or Path(tempfile.mkdtemp(prefix="skerry-vm-", dir=SOCKETS_HOME))
        self.paths = MachinePaths(self.directory, own)
        self.process: ProcessId | None = None
        self.events: list[tuple[float, QmpEvent]] = []
        self._accelerator = accelerator
        self._tools = tools or ToolsRoot.ensure()
        self._owned = owned
        self._state = State.OFF
        self._changed = threading.Condition()
        self._qmp: QmpClient | None = None
        self._agent: AgentClient | None = None
        self._serial: SerialLog | None = None
        self._started = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- life cycle ---------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The present state."""
        if self._state is not State.OFF and self.process and not self.process.alive():
            self._on_event(EXIT)
        return self._state

    @property
    def serial(self) -> SerialLog:
        """The serial console of this power cycle."""
        if self._serial is None:
            raise MachineError(f"machine {self.spec.name} has not been started")
        return self._serial

    def elapsed(self) -> float:
        """Return the seconds since power-on."""
        return time.monotonic() - self._started

    def start(self) -> None:
        """Switch on; returns once QEMU runs. The disk and UEFI variables are made when missing."""
        if self.state is not State.OFF:
            raise MachineError(f"machine {self.spec.name} is {self.state}, not off")
        self._hang_up()
        self.spec = prepare.with_agent(self.spec)
        prepare.prepare(self.spec, self.paths, self._tools)
        for path in self.paths.sockets.iterdir():
            if path.is_socket():
                path.unlink()
        offset = self.paths.serial_log.stat().st_size if self.paths.serial_log.exists() else 0
        argv = qemu_arguments(self.spec, self.paths, self._accelerator)
        if self._owned:
            argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
        command = self._tools.command(argv, binds=prepare.binds(self.spec, self.paths))
        if self.spec.namespace:
            command = ["nsenter", f"--net={self.spec.namespace}", "--", *command]
        with self.paths.qemu_log.open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        self._started = time.monotonic()
        self.process = ProcessId.of(child.pid)
        # Popen would warn about a child it still knows when it is collected; we reap by number.
        child.returncode = 0
        self._serial = SerialLog(self.paths.serial_log, started=self._started, offset=offset)
        self._state = State.RUNNING
        self.events.clear()
        try:
            self._qmp = self._wait_for_monitor()
        except BaseException:
            self.power_cut()
            raise

    def adopt(self, process: ProcessId, *, started: float) -> None:
        """Take over a machine that another process of ours started, and that still runs."""
        self.process = process
        self._started = started
        self._serial = SerialLog(self.paths.serial_log, started=started)
        self._state = State.RUNNING if process.alive() else State.OFF

    def power_off(self, *, timeout: float = 120.0) -> None:
        """Press the power button and wait until the guest has switched itself off."""
        if self.state is State.OFF:
            return
        self.qmp("system_powerdown")
        self.wait_off(timeout=timeout)

    def power_cut(self) -> None:
        """Pull the plug: QEMU is killed, what the guest had not flushed is lost."""
        if self.process:
            self.process.kill()
            if not self.process.wait(10):
                raise MachineError(f"machine {self.spec.name}: QEMU survived SIGKILL")
        self._on_event(EXIT)
        self._hang_up()

    def reset(self) -> None:
        """Press the reset button."""
        self.qmp("system_reset")

    def wait_off(self, *, timeout: float) -> None:
        """Wait until the guest has switched itself off and QEMU has ended."""
        if self.process and not self.process.wait(timeout):
            raise WaitTimeoutError(
                f"machine {self.spec.name} is still {self.state} after {timeout:.0f} s; the last "
                f"lines are\n{last_lines(self.serial.text(), 15)}",
                hint=f"the whole console is in {self.paths.serial_log}",
            )
        self._on_event(EXIT)
        self._hang_up()

    def close(self) -> None:
        """End the machine and remove its sockets; logs and disk stay."""
        self.power_cut()
        shutil.rmtree(self.paths.sockets, ignore_errors=True)

    def release(self) -> None:
        """Let go of the machine without ending it."""
        self._hang_up()

    # -- monitor ------------------------------------------------------------------------------

    def qmp(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a QMP command."""
        if self._qmp is None:
            self._qmp = QmpClient(self.paths.qmp, on_event=self._on_event)
        return self._qmp.execute(command, arguments)

    def wait_for_event(self, name: str, *, timeout: float, count: int = 1) -> QmpEvent:
        """Wait for the n-th QMP event of a name since power-on."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [event for _, event in self.events if event.name == name]
                if len(found) >= count:
                    return found[count - 1]
                if time.monotonic() >= deadline:
                    raise WaitTimeoutError(
                        f"machine {self.spec.name}: no {name} in {timeout:.0f} s"
                    )
                self._changed.wait(0.5)

    def attach_file_as_disk(self, file: Path, *, name: str = "stick") -> str:
        """Plug a file in as a read-only USB stick; returns the path that udev will give it.

        For what is too large for :meth:`put_file`, and for sticks that carry a token.
        """
        backend = {"driver": "file", "filename": str(file.absolute())}
        node = {"driver": "raw", "node-name": name, "read-only": True, "file": backend}
        self.qmp("blockdev-add", node)
        device = {"driver": "usb-storage", "id": name, "bus": "usb.0", "drive": name}
        self.qmp("device_add", {**device, "serial": name})
        return f"/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_{name}-0:0"

    def detach(self, name: str = "stick") -> None:
        """Pull a stick out."""
        self.qmp("device_del", {"id": name})
        self.wait_for_event("DEVICE_DELETED", timeout=30)
        self.qmp("blockdev-del", {"node-name": name})

    def type_text(self, text: str) -> None:
        """Type on the serial console; what it answers is in :attr:`serial`."""
        # Hanging up at once matters: a connected reader that does not read blocks the guest.
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(self.paths.serial))
            console.sendall(text.encode())

    # -- snapshots of the disk, while the machine is off ----------------------------------------

    def save_disk(self, name: str) -> None:
        """Keep the present contents of the (overlay) disk under a name."""
        self._disk_snapshot("-c", name)

    def restore_disk(self, name: str) -> None:
        """Bring contents back that :meth:`save_disk` kept."""
        self._disk_snapshot("-a", name)

    def _disk_snapshot(self, action: str, name: str) -> None:
        if self.state is not State.OFF or self.spec.disk_mode is not DiskMode.OVERLAY:
            raise MachineError(f"machine {self.spec.name}: snapshots need it off, with an overlay")
        argv = ["qemu-img", "snapshot", action, name, str(self.paths.disk_overlay)]
        self._tools.run(argv, binds=prepare.binds(self.spec, self.paths))

    # -- the guest ----------------------------------------------------------------------------

    @property
    def agent(self) -> AgentClient:
        """The conversation with the lab agent (it may still have to say hello)."""
        if self._agent is not None and self._agent.gone:
            self._agent.close()
            self._agent = None
        if self._agent is None:
            self._agent = AgentClient([self.paths.agent(n) for n in range(AGENT_CHANNELS)])
        return self._agent

    def wait_agent(self, *, timeout: float = 600.0, other_than: str | None = None) -> str:
        """Wait until commands can be run (on another boot than one known); returns the boot id."""
        deadline = time.monotonic() + timeout
        while True:
            self.require_alive()
            try:
                left = max(deadline - time.monotonic(), 0.0)
                return self.agent.wait_ready(timeout=min(left, 5), other_than=other_than).boot_id
            except (AgentError, WaitTimeoutError):
                if time.monotonic() >= deadline:
                    raise WaitTimeoutError(
                        f"machine {self.spec.name}: no lab agent within {timeout:.0f} s; the last "
                        f"lines are\n{last_lines(self.serial.text(), 15)}",
                        hint=f"the whole console is in {self.paths.serial_log}",
                    ) from None
                time.sleep(0.1)

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        timeout: float = 120.0,
        stdin: bytes = b"",
        check: bool = False,
    ) -> Result:
        """Run a command as root in the guest; a string goes to its shell."""
        self.wait_agent(timeout=timeout)
        result = self.agent.run(argv, timeout=timeout, stdin=stdin)
        return result.check() if check else result

    def begin(self, argv: Sequence[str] | str) -> Job:
        """Start a command in the guest and return at once."""
        self.wait_agent()
        return self.agent.start(["/bin/sh", "-c", argv] if isinstance(argv, str) else argv)

    def wait_for(
        self, argv: Sequence[str] | str, *, timeout: float = 600.0, every: float = 1.0
    ) -> Result:
        """Run a command again and again until it ends with 0; the guest may reboot meanwhile."""
        deadline = time.monotonic() + timeout
        last = "it never ran"
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(
                    f"machine {self.spec.name}: `{argv}` did not succeed within {timeout:.0f} s: "
                    f"{last}",
                    hint=f"the console is in {self.paths.serial_log}",
                )
            try:
                result = self.run(argv, timeout=min(left, 120.0))
                if result.exit_status == 0:
                    return result
                said = (result.stderr or result.stdout).strip()[-500:]
                last = f"status {result.exit_status}: {said}"
            except (AgentError, WaitTimeoutError) as error:
                self.require_alive()
                last = str(error)
            time.sleep(min(every, max(left, 0)))

    def reboot(self, *, timeout: float = 600.0) -> str:
        """Reboot the guest from inside and wait for its agent; returns the new boot id."""
        before = self.wait_agent(timeout=timeout)
        self.begin(["systemctl", "reboot"])
        return self.wait_agent(timeout=timeout, other_than=before)

    def put_file(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write a file in the guest (up to some MiB: it goes through the serial port)."""
        script = 'umask 077; cat >"$1" && chmod "$2" "$1" && sync "$1"'
        argv = ["/bin/sh", "-c", script, "sh", path, f"{mode:o}"]
        self.run(argv, stdin=data, timeout=600, check=True)

    def get_file(self, path: str) -> bytes:
        """Return a file of the guest."""
        self.wait_agent()
        status, out, err = self.agent.run_bytes(["cat", "--", path], timeout=600)
        if status:
            raise AgentError(f"{path} cannot be read: {err.decode(errors='replace').strip()}")
        return out

    def require_alive(self) -> None:
        """Raise :class:`MachineError` with the last lines if QEMU has ended."""
        if self.state is State.OFF:
            raise MachineError(
                f"machine {self.spec.name} has ended; the last lines are\n"
                + last_lines(self.serial.text() + "\n" + self._qemu_said(), 15),
                hint=f"logs: {self.paths.serial_log} and {self.paths.qemu_log}",
            )

    # -- inside -------------------------------------------------------------------------------

    def _on_event(self, event: QmpEvent) -> None:
        with self._changed:
            self._state = following(self._state, event)
            self.events.append((self.elapsed(), event))
            self._changed.notify_all()

    def _hang_up(self) -> None:
        if self._qmp:
            self._qmp.close()
            self._qmp = None
        if self._agent:
            self._agent.close()
            self._agent = None
        if self._serial:
            self._serial.close()

    def _wait_for_monitor(self) -> QmpClient:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if self.process is None or not self.process.alive():
                raise MachineError(
                    f"machine {self.spec.name}: QEMU did not start: {self._qemu_said()}",
                    hint=f"log: {self.paths.qemu_log}",
                )
            try:
                return QmpClient(self.paths.qmp, on_event=self._on_event)
            except QmpError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)

    def _qemu_said(self) -> str:
        try:
            return last_lines(self.paths.qemu_log.read_text(errors="replace"), 5)
        except OSError:
            return ""
