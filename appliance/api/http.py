"""As much of HTTP/1.1 (RFC 9112) as a local API needs, as pure functions.

Not aiohttp: its server adds 13 MiB to a supervisor that is to stay under 60 MB, and what speaks
here is our own client, or curl, over a unix socket: one request a connection, no chunked bodies.
Nor h11: all that it adds is what is refused here (chunks, upgrades, further requests).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

HEAD_LIMIT = 8 * 1024
BODY_LIMIT = 64 * 1024
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_TARGET = re.compile(r"/[!-~]*", re.ASCII)
_ESCAPE = re.compile(rb"%(?:([0-9A-Fa-f]{2})|)")


class HttpError(Exception):
    """A request that gets an answer other than 2xx, with words for a person."""

    def __init__(self, status: HTTPStatus, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Request:
    """A request; header names are in lower case.

    ``path`` is as it was sent; ``query`` and ``parameters`` (what a route's template names in the
    path, filled in by the router) are decoded.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    query: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer that is sent in parts and ends with the connection.

    ``lasting``: it goes on until the client leaves (events); only a few of those are served at
    once. ``chunks`` is closed when the client is gone.
    """

    content_type: str
    chunks: AsyncGenerator[bytes, None]
    lasting: bool = False


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
    path, _, query = target.partition("?")
    return Request(method, path, headers, query=parse_query(query)), int(length)


def parse_query(text: str) -> dict[str, str]:
    """Return the parameters after the ``?``; each has a name and a ``=``, and comes once.

    A ``+`` is a plus: what a form would do is not done here. Raises HttpError.
    """
    found: dict[str, str] = {}
    for part in text.split("&") if text else ():
        name, equals, value = part.partition("=")
        name = decode_percent(name)
        if not equals or not name:
            raise _bad(f"the query {text[:80]!r} is not of the form name=value&name=value")
        if name in found:
            raise _bad(f"{name[:80]!r} is given twice in the query")
        found[name] = decode_percent(value)
    return found


def decode_percent(text: str) -> str:
    """Return text with its ``%XX`` decoded (RFC 3986, 2.1), as UTF-8 without control characters.

    :raises HttpError: a lone ``%``, bytes that are no UTF-8, a control character.
    """
    try:
        found = _ESCAPE.sub(lambda one: bytes([int(one[1], 16)]), text.encode("ascii")).decode()
    except (TypeError, ValueError):
        raise _bad(f"{text[:80]!r} has a % without two digits, or is not UTF-8") from None
    if any(ord(one) < 32 or 127 <= ord(one) < 160 for one in found):
        raise _bad(f"{text[:80]!r} has a control character in it")
    return found


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


def stream_head(content_type: str) -> bytes:
    """Return the head of an answer whose length is not known; it ends with the connection."""
    lines = [
        "HTTP/1.1 200 OK",
        f"Content-Type: {content_type}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"


def _bad(message: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, message)
