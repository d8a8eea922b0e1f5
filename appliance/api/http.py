"""As much of HTTP/1.1 (RFC 9112) as a local API needs, as pure functions.

Not aiohttp: its server adds 13 MiB to a supervisor that is to stay under 60 MB, and what speaks
here is our own client, or curl, over a unix socket: one request a connection, no chunked bodies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

HEAD_LIMIT = 8 * 1024
BODY_LIMIT = 64 * 1024
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_TARGET = re.compile(r"/[!-~]*", re.ASCII)


class HttpError(Exception):
    """A request that gets an answer other than 2xx, with words for a person."""

    def __init__(self, status: HTTPStatus, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Request:
    """A request; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def parse_head(data: bytes) -> tuple[Request, int]:
    """Return the request in ``data`` (up to and with the empty line) and the length of its body.

    :raises HttpError: it is not a request that we take.
    """
    if len(data) > HEAD_LIMIT:
        raise HttpError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"the request's head is longer than {HEAD_LIMIT} bytes",
        )
    try:
        first, *lines = data.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
    except ValueError:
        raise _bad("the request line is not HTTP") from None
    if not version.startswith("HTTP/1.") or not _TOKEN.fullmatch(method):
        raise _bad("only HTTP/1.1 is spoken here")
    if not _TARGET.fullmatch(target):
        raise _bad("the path is not one")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or not value.isprintable():
            raise _bad("a header is not one")
        if headers.setdefault(name.lower(), value.strip()) != value.strip():
            raise _bad(f"the header {name} is given twice")
    if "transfer-encoding" in headers:
        raise HttpError(
            HTTPStatus.NOT_IMPLEMENTED, "bodies in chunks are not taken", "Send a Content-Length."
        )
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 12:
        raise _bad("Content-Length is not a number")
    if int(length) > BODY_LIMIT:
        raise HttpError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the request has {int(length)} bytes, at most {BODY_LIMIT} are taken",
        )
    return Request(method, target.partition("?")[0], headers), int(length)


def response(
    status: HTTPStatus, body: bytes, content_type: str = "application/json", **headers: str
) -> bytes:
    """Return a whole response after which the connection is closed."""
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _bad(message: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, message)
