"""The ledger's part of the local API (docs/api.md): routes, and how entries look as JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import msgspec

from appliance.api.http import HttpError, Request, Streamed
from appliance.api.router import Answer, Body, Parameter, Route
from appliance.ledger.access import (
    BucketView,
    LedgerAccess,
    MissingError,
    NoBucketError,
    NotOpenError,
    Published,
    check_bucket,
)
from appliance.ledger.entry import VALUE_MAX, Entry
from appliance.ledger.hlc import ms_of
from appliance.ledger.subscription import Event, Subscription
from provisioning.keys import id_text

KEEP_ALIVE_SECONDS = 15.0
STORED_SECONDS = 5.0
# A publisher's share of the event loop at a time: each record costs a check of its signature.
PUBLISHED_AT_ONCE = 32
CHUNK = 32 * 1024
LEASE_MAX_S = 10 * 365 * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ENTRY = {
    "type": "object",
    "required": ["id", "bucket", "key", "value", "encoding", "owner", "written", "deleted"],
    "properties": {
        "id": {"type": "string", "description": "the entry's id, base32"},
        "bucket": {"type": "string"},
        "key": {"type": "string"},
        "value": {"type": "string", "description": "as the encoding says"},
        "encoding": {"enum": ["utf-8", "base64"]},
        "owner": {"type": "string", "description": "the id of the node or network that signed it"},
        "owner_name": {"type": ["string", "null"]},
        "written": {"type": "string", "format": "date-time"},
        "stamp": {"type": "string", "description": "hybrid logical clock, an integer in decimal"},
        "expires": {"type": ["string", "null"], "format": "date-time"},
        "deleted": {"type": "boolean"},
    },
}
_BUCKET = {
    "type": "object",
    "required": ["name", "what", "writers", "roles", "open", "lease_max_s", "entries", "bytes"],
    "properties": {
        "name": {"type": "string"},
        "what": {"type": "string"},
        "writers": {"type": "string"},
        "roles": {"type": "array", "items": {"type": "string"}},
        "open": {"type": "boolean", "description": "whether people and programs write it"},
        "lease_max_s": {"type": ["integer", "null"]},
        "value_max": {"type": "integer"},
        "entries": {"type": "integer"},
        "bytes": {"type": "integer"},
    },
}
_RECORDS = {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}}
_RESULT = {
    "type": "object",
    "required": ["id", "verdict", "reason"],
    "properties": {
        "id": {"type": ["string", "null"]},
        "verdict": {"enum": ["accepted", "known", "stale", "rejected"]},
        "reason": {"type": "string"},
    },
}


def entry_view(entry: Entry, owner_name: str | None = None) -> dict[str, object]:
    """Return an entry as JSON shows it."""
    text = _printable(entry.value)
    return {
        "id": id_text(entry.entry_id),
        "bucket": entry.bucket,
        "key": entry.key,
        "value": base64.b64encode(entry.value).decode() if text is None else text,
        "encoding": "base64" if text is None else "utf-8",
        "owner": id_text(entry.owner),
        "owner_name": owner_name,
        "written": _iso(ms_of(entry.stamp)),
        "stamp": str(entry.stamp),
        "expires": None if entry.expires is None else _iso(entry.expires),
        "deleted": entry.deleted,
    }


def ledger_routes(provider: Callable[[], LedgerAccess | None]) -> dict[tuple[str, str], Route]:
    """Return the routes; ``provider`` gives the ledger, None while the node has no network."""
    api = _LedgerApi(provider)
    watch = Parameter("watch", "1: events instead of a list, until the client leaves", "integer")
    prefix = Parameter("prefix", "only keys that begin so")
    lease = Parameter("lease", "seconds until the entry ends by itself", "integer")
    bucket = {"bucket": "one of GET /v1/ledger"}
    key = {**bucket, "key": "may contain slashes; NAME is ID/NAME of this node where ids lead"}
    no_network = {HTTPStatus.CONFLICT: "the node has no network yet, or its end of it does not run"}
    no_bucket = {**no_network, HTTPStatus.NOT_FOUND: "there is no such bucket"}
    no_key = {**no_network, HTTPStatus.NOT_FOUND: "there is no such bucket, or the key no value"}
    written = {HTTPStatus.FORBIDDEN: "people do not write there"}
    misfit = {HTTPStatus.BAD_REQUEST: "a rule of the bucket stands against it"}
    too_large = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "a value is too large for any bucket"}
    return {
        ("GET", "/v1/ledger"): Route(
            api.buckets,
            "The buckets and their rules; or what changes in all of them",
            query=(watch, prefix),
            answer=_object(buckets={"type": "array", "items": _BUCKET}),
            events=True,
            refusals=no_network,
        ),
        ("GET", "/v1/ledger/{bucket}"): Route(
            api.entries,
            "What counts in a bucket, in the order of the keys; or what changes in it",
            query=(prefix, watch),
            path=bucket,
            answer=_object(entries={"type": "array", "items": _ENTRY}),
            events=True,
            refusals=no_bucket,
        ),
        ("GET", "/v1/ledger/{bucket}/{key*}"): Route(
            api.get,
            "The entry that counts for a key",
            query=(),
            path=key,
            answer=_ENTRY,
            refusals=no_key,
        ),
        ("PUT", "/v1/ledger/{bucket}/{key*}"): Route(
            api.put,
            "Write a value as this node",
            query=(lease,),
            path=key,
            body=Body("the value as it is", "application/octet-stream", {}),
            body_limit=VALUE_MAX,
            answer=_ENTRY,
            refusals={**no_bucket, **written, **misfit, **too_large},
        ),
        ("DELETE", "/v1/ledger/{bucket}/{key*}"): Route(
            api.delete,
            "Take a key's value away, as this node; the answer is the tombstone",
            query=(),
            path=key,
            answer=_ENTRY,
            refusals={**no_key, **written, **misfit},
        ),
        ("GET", "/v1/ledger-dump"): Route(
            api.dump,
            "Every record that this node holds, for a backup",
            query=(),
            answer=_object(
                network_id={"type": "string"},
                node_id={"type": "string", "description": "the node that is asked"},
                now_ms={"type": "integer", "description": "the time there, Unix milliseconds"},
                records=_RECORDS,
            ),
            refusals=no_network,
        ),
        ("POST", "/v1/ledger-publish"): Route(
            api.publish,
            "Hand in entries that the root key signed; they spread from here",
            query=(),
            body=Body(
                "entries as GET /v1/ledger-dump gives them", schema=_object(records=_RECORDS)
            ),
            answer=_object(results={"type": "array", "items": _RESULT}),
            refusals={**no_network, HTTPStatus.BAD_REQUEST: "no such document; nothing was taken"},
        ),
    }


class _Publication(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    records: list[str]


class _LedgerApi:
    def __init__(self, provider: Callable[[], LedgerAccess | None]) -> None:
        self._provider = provider

    async def buckets(self, request: Request) -> Answer:
        ledger = self._ledger()
        if _watches(request):
            return _events(ledger, None, request.query.get("prefix", ""))
        return HTTPStatus.OK, {"buckets": [_bucket_view(one) for one in ledger.buckets()]}

    async def entries(self, request: Request) -> Answer:
        ledger = self._ledger()
        bucket, prefix = request.parameters["bucket"], request.query.get("prefix", "")
        with _statuses():
            check_bucket(bucket)
        if _watches(request):
            return _events(ledger, bucket, prefix)
        found = ledger.list(bucket, prefix)
        items = (entry_view(one, ledger.owner_name(one.owner)) for one in found)
        return _document({}, "entries", items)

    async def get(self, request: Request) -> Answer:
        ledger = self._ledger()
        bucket, key = request.parameters["bucket"], request.parameters["key"]
        with _statuses():
            entry = ledger.get(bucket, key)
            if entry is None:
                raise MissingError(
                    f"{bucket}/{key} has no value",
                    hint=f"There may be others: GET /v1/ledger/{bucket}",
                )
        return HTTPStatus.OK, entry_view(entry, ledger.owner_name(entry.owner))

    async def put(self, request: Request) -> Answer:
        ledger = self._ledger()
        bucket, key = request.parameters["bucket"], request.parameters["key"]
        lease = _lease(request)
        with _statuses():
            entry = ledger.put(bucket, key, request.body, lease)
        await _stored(ledger, entry)
        return HTTPStatus.OK, entry_view(entry, ledger.owner_name(entry.owner))

    async def delete(self, request: Request) -> Answer:
        ledger = self._ledger()
        with _statuses():
            entry = ledger.delete(request.parameters["bucket"], request.parameters["key"])
        await _stored(ledger, entry)
        return HTTPStatus.OK, entry_view(entry, ledger.owner_name(entry.owner))

    async def dump(self, _: Request) -> Answer:
        ledger = self._ledger()
        records = (base64.b64encode(one).decode() for one in ledger.dump())
        head: dict[str, object] = {
            "network_id": id_text(ledger.network_id),
            "node_id": id_text(ledger.node_id),
            "now_ms": ledger.now_ms(),
        }
        return _document(head, "records", records)

    async def publish(self, request: Request) -> Answer:
        ledger = self._ledger()
        records = _records(request.body)
        results: list[dict[str, object]] = []
        for start in range(0, len(records), PUBLISHED_AT_ONCE):
            published = ledger.publish(records[start : start + PUBLISHED_AT_ONCE])
            results.extend(_published_view(one) for one in published)
            await asyncio.sleep(0)
        return HTTPStatus.OK, {"results": results}

    def _ledger(self) -> LedgerAccess:
        ledger = self._provider()
        if ledger is None:
            raise HttpError(
                HTTPStatus.CONFLICT,
                "this node has no ledger: it is in no network yet",
                "`skerry status` says what it waits for; `skerry provision` gives it a token.",
            )
        return ledger


@contextmanager
def _statuses() -> Iterator[None]:
    """Turn the ledger's errors into answers with a fitting status; the others are bad requests."""
    try:
        yield
    except (NoBucketError, MissingError) as error:
        raise HttpError(HTTPStatus.NOT_FOUND, str(error), error.hint or "") from error
    except NotOpenError as error:
        raise HttpError(HTTPStatus.FORBIDDEN, str(error), error.hint or "") from error


async def _stored(ledger: LedgerAccess, entry: Entry) -> None:
    """Wait until a write is on the disk: what has been answered is not lost."""
    stored = asyncio.Event()
    ledger.when_stored(entry, stored.set)
    try:
        async with asyncio.timeout(STORED_SECONDS):
            await stored.wait()
    except TimeoutError:
        raise HttpError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{entry.bucket}/{entry.key} was written, but is not on the disk yet",
            "The disk may be slow or broken: skerry status",
        ) from None


def _watches(request: Request) -> bool:
    value = request.query.get("watch", "0")
    if value not in {"0", "1"}:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"watch={value[:20]!r} is neither 0 nor 1")
    return value == "1"


def _lease(request: Request) -> int | None:
    text = request.query.get("lease")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= LEASE_MAX_S):
        raise HttpError(
            HTTPStatus.BAD_REQUEST,
            f"{text[:20]!r} is no lease",
            "A lease is a whole number of seconds from 1.",
        )
    return int(text)


def _records(body: bytes) -> list[bytes]:
    try:
        document = msgspec.json.decode(body, type=_Publication)
        return [base64.b64decode(one, validate=True) for one in document.records]
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise HttpError(
            HTTPStatus.BAD_REQUEST,
            f"this is no list of records: {error}",
            'The body is {"records": [BASE64, ...]}.',
        ) from error


def _document(head: dict[str, object], name: str, items: Iterable[object]) -> Streamed:
    """Return a JSON object whose last field is a list that may be long: never all in memory."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        opening = msgspec.json.encode({**head, name: []}).removesuffix(b"]}")
        buffer = bytearray(opening)
        comma = b""
        for item in items:
            buffer += comma + msgspec.json.encode(item)
            comma = b","
            if len(buffer) >= CHUNK:
                yield bytes(buffer)
                buffer.clear()
                await asyncio.sleep(0)  # others have their turn even if the client is fast
        yield bytes(buffer + b"]}")

    return Streamed("application/json", chunks())


def _events(ledger: LedgerAccess, bucket: str | None, prefix: str) -> Streamed:
    async def chunks() -> AsyncGenerator[bytes, None]:
        awake = asyncio.Event()
        subscription = ledger.watch(bucket, prefix, wake=awake.set)
        try:
            while not subscription.closed:
                awake.clear()
                if said := b"".join(_some(ledger, subscription)):
                    yield said
                    continue
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        await awake.wait()
                except TimeoutError:
                    yield b": nothing new\n\n"
        finally:
            subscription.close()

    return Streamed("text/event-stream", chunks(), lasting=True)


def _some(ledger: LedgerAccess, subscription: Subscription) -> Iterator[bytes]:
    """Yield some events of those that wait, as they are sent."""
    size = 0
    while size < CHUNK and (event := subscription.take()) is not None:
        said = event_text(event, ledger.owner_name)
        size += len(said)
        yield said


def event_text(event: Event, owner_name: Callable[[bytes], str | None]) -> bytes:
    """Return an event in the form of text/event-stream (HTML Living Standard, 9.2)."""
    data: dict[str, object] = {}
    identifier = ""
    if event.entry is not None:
        data = entry_view(event.entry, owner_name(event.entry.owner))
        identifier = f"id: {data['id']}\n"
    elif event.key:
        data = {"bucket": event.bucket, "key": event.key, "deleted": True}
    # JSON has no line breaks of its own, and those in values are escaped: one line.
    head = f"event: {event.kind.value}\n{identifier}data: ".encode()
    return head + msgspec.json.encode(data) + b"\n\n"


def _bucket_view(view: BucketView) -> dict[str, object]:
    rule = view.rule
    return {
        "name": rule.name,
        "what": rule.what,
        "writers": rule.writers.value,
        "roles": sorted(rule.roles),
        "open": view.open,
        "lease_max_s": None if rule.lease_max_ms is None else rule.lease_max_ms // 1000,
        "value_max": rule.value_max,
        "entries": view.entries,
        "bytes": view.bytes,
    }


def _published_view(one: Published) -> dict[str, object]:
    return {
        "id": None if one.entry_id is None else id_text(one.entry_id),
        "verdict": one.verdict.value,
        "reason": one.reason,
    }


def _object(**properties: object) -> dict[str, object]:
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _printable(value: bytes) -> str | None:
    """Return a value as text if people can read it as such, line breaks and tabs included."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if all(one.isprintable() or one in "\n\t" for one in text) else None


def _iso(ms: int) -> str:
    """Return Unix milliseconds as ISO 8601 in UTC; beyond the year 9999, that year's end."""
    try:
        moment = _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        moment = datetime.max.replace(tzinfo=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
