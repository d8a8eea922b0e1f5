"""The secrets' part of the local API: who may read them is told to all who may ask, values are not.

Values are for root and the supervisor's own user, reading and writing: who is only in the group
could else put a credential of its own in the place of the cluster's.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from appliance.api.http import HttpError, Request
from appliance.api.router import Answer, Body, Parameter, Route
from appliance.ledger.entry import Entry
from appliance.ledger.keeper import Info
from appliance.ledger.secrets import VALUE_MAX, AbsentError, RoleError, check_name
from appliance.ledger.vault import Vault
from provisioning.keys import id_text

STORED_SECONDS = 5.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WHO = {
    "type": "object",
    "required": ["node_id", "name"],
    "properties": {"node_id": {"type": "string"}, "name": {"type": ["string", "null"]}},
}
_SECRET = {
    "type": "object",
    "required": ["name", "generation", "roles", "exposed", "readable", "written", "written_by"],
    "properties": {
        "name": {"type": "string"},
        "generation": {"type": "integer", "description": "counts the values put"},
        "roles": {"type": "array", "items": {"type": "string"}},
        "written": {
            "type": "string",
            "format": "date-time",
            "description": "by the writer's clock",
        },
        "written_by": {"type": "array", "items": _WHO},
        "taken_over": {"type": "boolean", "description": "its own writer is out"},
        "exposed": {"type": "boolean", "description": "one who is out has had it: put a new one"},
        "readable": {"type": "boolean", "description": "this node holds the value that counts"},
        "held_generation": {"type": ["integer", "null"]},
        "missing": {"type": "integer", "description": "members in its roles without it so far"},
        "unreadable_from": {"type": "array", "items": _WHO},
    },
}
_VALUE = {
    "type": "object",
    "required": ["name", "generation", "value", "encoding"],
    "properties": {
        "name": {"type": "string"},
        "generation": {"type": "integer"},
        "value": {"type": "string", "description": "as the encoding says"},
        "encoding": {"enum": ["utf-8", "base64"]},
    },
}


def secret_routes(provider: Callable[[], Vault | None]) -> dict[tuple[str, str], Route]:
    """Return the routes; ``provider`` gives the secrets, None while the node has no network."""
    api = _SecretApi(provider)
    name = {"name": "1 to 64 of a-z 0-9 . _ -"}
    no_network = {HTTPStatus.CONFLICT: "the node has no network yet, or its end of it does not run"}
    no_secret = {**no_network, HTTPStatus.NOT_FOUND: "there is none, or not for this node"}
    misfit = {
        HTTPStatus.BAD_REQUEST: "not a name, a role or a value",
        HTTPStatus.FORBIDDEN: "neither root nor the supervisor's user, or a node that is no server",
    }
    roles = Parameter("roles", "who may read it, with commas between; servers always can")
    return {
        ("GET", "/v1/secret"): Route(
            api.list,
            "The secrets there are, without their values",
            query=(),
            answer={
                "type": "object",
                "required": ["secrets"],
                "properties": {"secrets": {"type": "array", "items": _SECRET}},
            },
            refusals=no_network,
        ),
        ("GET", "/v1/secret/{name}"): Route(
            api.get,
            "A secret's value, for root and the supervisor's user",
            query=(),
            path=name,
            answer=_VALUE,
            refusals={**no_secret, **misfit},
            private=True,
        ),
        ("PUT", "/v1/secret/{name}"): Route(
            api.put,
            "Put a secret's next value, for root and the supervisor's user",
            query=(roles,),
            path=name,
            body=Body("the value as it is", "application/octet-stream", {}),
            body_limit=VALUE_MAX,
            answer=_SECRET,
            refusals={**no_network, **misfit},
            private=True,
        ),
        ("DELETE", "/v1/secret/{name}"): Route(
            api.delete,
            "End a secret for all members, for root and the supervisor's user",
            query=(),
            path=name,
            refusals={**no_secret, **misfit},
            private=True,
        ),
    }


class _SecretApi:
    def __init__(self, provider: Callable[[], Vault | None]) -> None:
        self._provider = provider

    async def list(self, _: Request) -> Answer:
        vault = self._vault()
        return HTTPStatus.OK, {"secrets": [_view(one, vault) for one in vault.secrets()]}

    async def get(self, request: Request) -> Answer:
        vault = self._vault()
        with _statuses():
            secret = vault.get(request.parameters["name"])
        value, encoding = _text(secret.value)
        return HTTPStatus.OK, {
            "name": secret.name,
            "generation": secret.version.generation,
            "value": value,
            "encoding": encoding,
        }

    async def put(self, request: Request) -> Answer:
        vault = self._vault()
        name = request.parameters["name"]
        roles = [one for one in request.query.get("roles", "").split(",") if one]
        with _statuses():
            notice = vault.put(name, request.body, roles)
        await _stored(vault, notice, name)
        return HTTPStatus.OK, next(_view(one, vault) for one in vault.secrets() if one.name == name)

    async def delete(self, request: Request) -> Answer:
        vault = self._vault()
        name = request.parameters["name"]
        with _statuses():
            notice = vault.remove(check_name(name))
        await _stored(vault, notice, name)
        return HTTPStatus.OK, {"name": name, "removed": True}

    def _vault(self) -> Vault:
        vault = self._provider()
        if vault is None:
            raise HttpError(
                HTTPStatus.CONFLICT,
                "this node has no secrets: it is in no network yet",
                "`skerry status` says what it waits for; `skerry provision` gives it a token.",
            )
        return vault


@contextmanager
def _statuses() -> Iterator[None]:
    """Turn errors into answers with a fitting status; the others are bad requests."""
    try:
        yield
    except AbsentError as error:
        raise HttpError(HTTPStatus.NOT_FOUND, str(error), error.hint or "") from error
    except RoleError as error:
        raise HttpError(HTTPStatus.FORBIDDEN, str(error), error.hint or "") from error


async def _stored(vault: Vault, notice: Entry, name: str) -> None:
    """Wait until a write is on the disk: what has been answered is not lost."""
    stored = asyncio.Event()
    vault.when_stored(notice, stored.set)
    try:
        async with asyncio.timeout(STORED_SECONDS):
            await stored.wait()
    except TimeoutError:
        raise HttpError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{name} was written, but is not on the disk yet",
            "The disk may be slow or broken: skerry status",
        ) from None


def _view(info: Info, vault: Vault) -> dict[str, object]:
    def who(node_id: bytes) -> dict[str, object]:
        return {"node_id": id_text(node_id), "name": vault.node_name(node_id)}

    return {
        "name": info.name,
        "generation": info.generation,
        "roles": list(info.roles),
        "written": (_EPOCH + timedelta(milliseconds=min(info.put_ms, 253_402_300_799_999)))
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z"),
        "written_by": [who(one) for one in info.writers],
        "taken_over": info.copied,
        "exposed": info.exposed,
        "readable": info.readable,
        "held_generation": info.held_generation,
        "missing": info.missing,
        "unreadable_from": [who(one) for one in info.unreadable_from],
    }


def _text(value: bytes) -> tuple[str, str]:
    try:
        return value.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(value).decode(), "base64"
