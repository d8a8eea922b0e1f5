"""Messages to the service manager: sd_notify(3), without libsystemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

LONGEST = 4096


class Notifier:
    """Tells the service manager how the process is; does nothing where there is none.

    The variables are taken out of ``environment``, so that no child process speaks for us.
    """

    def __init__(self, environment: dict[str, str] | os._Environ[str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._address = _address(variables.pop("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog(variables)
        variables.pop("WATCHDOG_USEC", None)
        variables.pop("WATCHDOG_PID", None)
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(0)

    def send(self, **fields: str | int) -> bool:
        """Send ``READY=1``-like fields; False: there is no manager, or it did not take them."""
        if self._socket is None:
            return False
        lines = "\n".join(
            f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items()
        )
        with suppress(OSError):
            self._socket.sendto(lines.encode(errors="replace")[:LONGEST], self._address)
            return True
        return False

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _address(text: str) -> str:
    """Return the socket's address; ``@`` stands for the abstract name space."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _watchdog(variables: Mapping[str, str]) -> float | None:
    """Return the seconds within which WATCHDOG=1 has to come, or None."""
    if variables.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = variables.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() and int(text) > 0 else None
