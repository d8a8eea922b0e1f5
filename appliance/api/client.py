"""A small synchronous client of the local API, light enough for a command that starts often."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.errors import SkerryError

SOCKET = Path("/run/skerry/api.sock")
TIMEOUT_SECONDS = 15.0
# The supervisor says something every 15 s, if only that there is nothing new.
SILENCE_SECONDS = 45.0
LINE_LIMIT = 1024 * 1024


class ApiError(SkerryError):
    """The supervisor can't be asked, or said no; then ``status`` is that of its answer."""

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class NotRunningError(ApiError):
    """Nobody listens on the socket."""


class EndedError(ApiError):
    """The supervisor ended a stream of events, or fell silent."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One server-sent event, its data decoded from JSON; ``id`` is empty if it has none."""

    kind: str
    id: str
    data: dict[str, Any]


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
    with closing(connection), _explained(socket_path):
        connection.request(method, path, body, {"Connection": "close"})
        answer = connection.getresponse()
        status, data = answer.status, answer.read()
    return _checked(status, data)


def stream(
    path: str, *, socket_path: Path = SOCKET, silence: float = SILENCE_SECONDS
) -> Iterator[StreamEvent]:
    """Yield the events of a path, as they come, until the caller has enough.

    :raises EndedError: the supervisor ended it (it may be restarting), or said nothing for
        ``silence`` seconds.
    :raises ApiError: as `call` does, before the first event.
    """
    connection = _Connection(socket_path, silence)
    with closing(connection), _explained(socket_path):
        connection.request("GET", path, headers={"Accept": "text/event-stream"})
        answer = connection.getresponse()
        if answer.status >= 400 or not answer.headers.get_content_type().startswith("text/event-"):
            _checked(answer.status, answer.read())
            raise ApiError(f"{path} has no events")
        try:
            yield from _events(answer)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise EndedError(f"the stream of events broke off: {reason}") from error
        raise EndedError("the supervisor ended the stream of events")


def _events(answer: http.client.HTTPResponse) -> Iterator[StreamEvent]:
    fields: dict[str, str] = {}
    while line := answer.readline(LINE_LIMIT):
        name, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield _event(fields)
            fields = {}
        # Else a comment, or the empty line after one.


def _event(fields: dict[str, str]) -> StreamEvent:
    try:
        data = json.loads(fields["data"])
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise ApiError("the supervisor sent an event whose data is not a JSON object")
    return StreamEvent(fields.get("event", "message"), fields.get("id", ""), data)


@contextmanager
def _explained(socket_path: Path) -> Iterator[None]:
    """Say of a failed exchange what it means and what to do."""
    try:
        yield
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
            status=status,
        )
    return document
