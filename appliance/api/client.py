"""A small synchronous client of the local API, light enough for a command that starts often."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from skerry.errors import SkerryError

SOCKET = Path("/run/skerry/api.sock")
TIMEOUT_SECONDS = 15.0


class ApiError(SkerryError):
    """The supervisor can't be asked, or said no."""


class NotRunningError(ApiError):
    """Nobody listens on the socket."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    socket_path: Path = SOCKET,
    timeout: float = TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """Return the JSON object that the supervisor answers with.

    :raises NotRunningError: nobody listens.
    :raises ApiError: no permission, no answer, or an answer that is an error.
    """
    connection = _Connection(socket_path, timeout)
    try:
        connection.request(method, path, body, {"Connection": "close"})
        answer = connection.getresponse()
        status, data = answer.status, answer.read()
    except PermissionError as error:
        raise ApiError(
            f"no permission to use {socket_path}",
            hint="Use sudo, or join the group: usermod -aG skerry USER",
        ) from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotRunningError(
            f"the supervisor does not run here: nobody listens on {socket_path}",
            hint="On a node: systemctl status skerry; journalctl -u skerry",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise ApiError(
            f"the supervisor at {socket_path} does not answer: {reason}",
            hint="If this stays: journalctl -u skerry; systemctl restart skerry",
        ) from error
    finally:
        connection.close()
    return _checked(status, data)


def _checked(status: int, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ApiError(f"the supervisor's answer (status {status}) is not a JSON object")
    if status >= 400:
        raise ApiError(
            str(document.get("error", f"status {status}")),
            hint=str(document.get("hint", "")) or None,
        )
    return document
