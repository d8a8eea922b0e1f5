"""Structured logs in the journal, through its native protocol (systemd: JOURNAL_NATIVE_PROTOCOL).

``logging`` is what all code uses. Anything given as ``extra={"skerry_peer": ...}`` becomes the
field ``SKERRY_PEER``: `journalctl SKERRY_PEER=...` finds it. Without a journal, lines go to stderr.

Secrets are never logged on purpose; :class:`Redactor` is the second line behind that.
"""

from __future__ import annotations

import base64
import logging
import re
import socket
import struct
import sys
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "skerry"
LONGEST_VALUE = 12 * 1024
LONGEST_ENTRY = 64 * 1024
HIDDEN = "[hidden]"
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
_PREFIX = "skerry_"


def encode(fields: Mapping[str, str]) -> bytes:
    """Return one entry in the journal's native format.

    A value with a line feed in it is sent with its length before it, so that nothing that comes
    from outside can add a field. Long values are cut.

    :raises ValueError: a name is not of A-Z, 0-9 and underscore.
    """
    parts = []
    for name, value in fields.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} can't be the name of a journal field")
        data = _cut(value.encode(errors="backslashreplace"), LONGEST_VALUE)
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def _cut(data: bytes, longest: int) -> bytes:
    if len(data) <= longest:
        return data
    mark = b" [... %d bytes more]" % (len(data) - longest)
    return data[:longest].decode(errors="ignore").encode() + mark


class Redactor:
    """Replaces what must not be logged: tokens by their look, other secrets by their value."""

    def __init__(self, patterns: Iterable[re.Pattern[str]] = ()) -> None:
        self._patterns = list(patterns)
        self._secrets: set[str] = set()

    def hide(self, secret: bytes | str) -> None:
        """Hide a secret in every form in which it could slip into a text."""
        data = secret.encode() if isinstance(secret, str) else secret
        if len(data) < 8:  # would hide innocent words
            return
        forms = {data.hex(), repr(data)[2:-1], base64.b32encode(data).decode().rstrip("=").lower()}
        for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
            forms.add(encoded.decode().rstrip("="))
        with suppress(UnicodeDecodeError):
            forms.add(data.decode())
        self._secrets |= forms

    def clean(self, text: str) -> str:
        """Return the text without anything hidden."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, HIDDEN)
        for pattern in self._patterns:
            text = pattern.sub(HIDDEN, text)
        return text


def priority_of(level: int) -> int:
    """Return the syslog priority of a ``logging`` level."""
    return next((priority for floor, priority in _PRIORITIES if level >= floor), 7)


def fields_of(record: logging.LogRecord, redactor: Redactor) -> dict[str, str]:
    """Return the journal fields of a log record, cleaned of secrets."""
    message = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        message += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
    fields = {
        "MESSAGE": redactor.clean(message),
        "PRIORITY": str(priority_of(record.levelno)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "SKERRY_LOGGER": record.name,
    }
    if record.levelno >= logging.WARNING:
        fields |= {
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
    for name, value in vars(record).items():
        if name.startswith(_PREFIX):
            text = f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
            fields[name.upper()] = redactor.clean(text)
    return fields


class JournalHandler(logging.Handler):
    """Sends records to the journal; to ``stderr`` while there is none.

    It never blocks (a hung journal must not hang the tunnel's keeper): what the journal does not
    take at once is counted and said with the next entry.
    """

    def __init__(self, path: Path = JOURNAL_SOCKET, redactor: Redactor | None = None) -> None:
        super().__init__()
        self._path = str(path)
        self._redactor = redactor or Redactor()
        self._dropped = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(0)
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        try:
            fields = fields_of(record, self._redactor)
            if self._dropped:
                fields["SKERRY_DROPPED"] = str(self._dropped)
            self._send(fields)
        except Exception:  # noqa: BLE001 - a log line must not end the node
            self.handleError(record)

    def _send(self, fields: dict[str, str]) -> None:
        data = encode(fields)
        if len(data) > LONGEST_ENTRY:
            data = encode({name: fields[name][:1000] for name in ("MESSAGE", "PRIORITY")})
        try:
            self._socket.sendto(data, self._path)
            self._dropped = 0
        except BlockingIOError:
            self._dropped += 1
        except OSError:
            print(f"<{fields['PRIORITY']}>{fields['MESSAGE']}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


class LineHandler(logging.Handler):
    """Lines on stderr for a supervisor that was started by hand."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        try:
            fields = fields_of(record, self._redactor)
            extra = "".join(
                f" {name[7:].lower()}={value}"
                for name, value in fields.items()
                if name.startswith("SKERRY_") and name != "SKERRY_LOGGER"
            )
            sys.stderr.write(f"skerry: {fields['MESSAGE']}{extra}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - a log line must not end the node
            self.handleError(record)


def set_up(redactor: Redactor, *, level: int, journal: Path | None) -> logging.Handler:
    """Send everything that is logged to the journal at ``journal``, or to stderr if None."""
    handler: logging.Handler
    if journal is not None and journal.exists():
        handler = JournalHandler(journal, redactor)
    else:
        handler = LineHandler(redactor)
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    return handler
