"""Heads, targets and routes as pure functions: what is read, and what hostile bytes come to."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.http import HttpError, Request, decode_percent, parse_head, parse_query
from appliance.api.ledger import ledger_routes
from appliance.api.node import node_routes
from appliance.api.openapi import described, description
from appliance.api.router import Answer, Handler, Parameter, Route, Router
from appliance.config import SupervisorConfig
from appliance.journal import Redactor
from appliance.notify import Notifier
from appliance.people import Console
from appliance.supervisor import Supervisor
from tests.fakes.overlay import FakeOverlay


async def handler(_: Request) -> Answer:
    return HTTPStatus.OK, {}


# Targets


@given(st.text(max_size=50))
def test_what_is_quoted_is_decoded(text: str) -> None:
    controls = any(ord(one) < 32 or 127 <= ord(one) < 160 for one in text)
    if controls:
        with pytest.raises(HttpError, match="control character"):
            decode_percent(quote(text, safe=""))
    else:
        assert decode_percent(quote(text, safe="")) == text


@pytest.mark.parametrize(
    "text", ["%", "a%", "%4", "%zz", "%%41", "%4 1", "%c3", "%ff%fe", "%ed%a0%80"]
)
def test_what_is_no_escape(text: str) -> None:
    with pytest.raises(HttpError, match="% without two digits") as caught:
        decode_percent(text)
    assert caught.value.status == 400


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_any_target_is_read_strictly_or_refused(target: str) -> None:
    with contextlib.suppress(HttpError):
        request, _ = parse_head(f"GET /{target} HTTP/1.1\r\n\r\n".encode())
        assert all(name for name in request.query)
        path, _, query = f"/{target}".partition("?")
        assert request.path == path
        assert len(request.query) == (query.count("&") + 1 if query else 0)


@given(
    st.dictionaries(
        st.text(st.characters(categories=("L", "N", "P")), min_size=1),
        st.text(st.characters(categories=("L", "N", "P", "Zs"))),
        max_size=5,
    )
)
def test_queries_are_read_as_they_were_meant(query: dict[str, str]) -> None:
    text = "&".join(
        f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items()
    )
    assert parse_query(text) == query


@pytest.mark.parametrize(
    "query", ["a", "=b", "a=1&", "&a=1", "a=1&&b=1", "a=1&a=2", "a=1&%61=2", "&"]
)
def test_queries_that_are_none(query: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_query(query)
    assert caught.value.status == 400


def test_a_plus_is_a_plus() -> None:
    assert parse_query("a=1+1") == {"a": "1+1"}


@given(
    st.lists(
        st.sampled_from(
            [
                "/v1/ledger",
                "/",
                "shared",
                "%2F",
                "..",
                ".",
                "%",
                "%41",
                "{key*}",
                "?",
                "watch=1",
                "&",
                "k" * 200,
                "=",
                "//",
                "#",
                "\\",
            ]
        ),
        max_size=10,
    ),
    st.sampled_from(["GET", "PUT", "DELETE", "POST", "PATCH", "get", "GET "]),
)
def test_any_request_finds_a_route_or_words(parts: list[str], method: str) -> None:
    router = Router(ledger_routes(lambda: None))
    with contextlib.suppress(HttpError):
        request, _ = parse_head(f"{method} {''.join(parts)} HTTP/1.1\r\n\r\n".encode())
        route, found = router.find(request)
        assert route.summary
        assert found.path.startswith("/v1/ledger")


# Routes


def test_templates() -> None:
    router = Router(
        {
            ("GET", "/a"): Route(handler, "a"),
            ("GET", "/a/{one}"): Route(handler, "one", query=None),
            ("GET", "/a/{one}/{rest*}"): Route(handler, "rest"),
            ("GET", "/a/fixed"): Route(handler, "fixed"),
        }
    )

    def found(path: str) -> tuple[str, Mapping[str, str]]:
        route, request = router.find(Request("GET", path))
        return route.summary, request.parameters

    assert found("/a") == ("a", {})
    assert found("/%61") == ("a", {})
    assert found("/a/fixed") == ("fixed", {})
    assert found("/a/x%2Fy") == ("one", {"one": "x/y"})
    assert found("/a/x/y/z") == ("rest", {"one": "x", "rest": "y/z"})
    assert found("/a/x/y//z/") == ("rest", {"one": "x", "rest": "y//z/"})
    for path in ("/", "/a/", "/a//x", "/a/x/", "/b", "//a"):
        with pytest.raises(HttpError, match="there is no") as caught:
            found(path)
        assert "GET /a/{one}" in caught.value.hint


def test_a_bare_handler_is_a_route_that_takes_any_query() -> None:
    router = Router({("GET", "/a"): handler})
    assert router.find(Request("GET", "/a", query={"x": "1"}))[0].handler is handler


def test_queries_are_checked_against_the_route() -> None:
    wanted = Parameter("address", "whose", required=True)
    router = Router({("GET", "/a"): Route(handler, "a", query=(wanted,))})
    router.find(Request("GET", "/a", query={"address": "x"}))
    for query, words in (({"adress": "x"}, "does not take 'adress'"), ({}, "needs .address=")):
        with pytest.raises(HttpError, match=words) as caught:
            router.find(Request("GET", "/a", query=query))
        assert "address" in caught.value.hint


# The description


@pytest.fixture
def table(tmp_path: Path) -> dict[tuple[str, str], Route | Handler]:
    """Return the real supervisor's table."""
    overlay = FakeOverlay()
    supervisor = Supervisor(
        SupervisorConfig(state_dir=tmp_path / "state", run_dir=tmp_path / "run"),
        make_overlay=overlay.make,
        redactor=Redactor(),
        notifier=Notifier({}),
        console=Console(tmp_path / "issue"),
    )
    try:
        return supervisor.routes()
    finally:
        supervisor._store.close()


def test_every_route_is_described_and_nothing_else(
    table: dict[tuple[str, str], Route | Handler],
) -> None:
    document = description(table)
    paths = document["paths"]
    assert isinstance(paths, dict)
    told = {(method.upper(), path) for path, one in paths.items() for method in one}
    assert told == {(method, path.replace("*}", "}")) for method, path in table}
    assert ("GET", "/v1/openapi.json") in told
    undescribed = [slot for slot, one in table.items() if not isinstance(one, Route)]
    assert not undescribed, "give them a Route with a summary (appliance/api/router.py)"
    assert all(one.summary for one in table.values() if isinstance(one, Route))
    assert all(one.query is not None for one in table.values() if isinstance(one, Route))


def test_the_description_is_one_by_its_own_rules(
    table: dict[tuple[str, str], Route | Handler],
) -> None:
    check_openapi(description(table))


async def test_the_description_is_what_the_route_answers() -> None:
    routes = described(node_routes(status=handler, health=handler, token=handler))
    route = routes["GET", "/v1/openapi.json"]
    assert isinstance(route, Route)
    answer = await route.handler(Request("GET", "/v1/openapi.json"))
    assert answer == (HTTPStatus.OK, description(routes))


def check_openapi(document: Mapping[str, object]) -> None:
    """Check what OpenAPI 3.1 wants of a document like ours (its sections 4.8.1 to 4.8.21)."""
    assert document["openapi"] == "3.1.0"
    info, paths = document["info"], document["paths"]
    assert isinstance(info, dict)
    assert isinstance(paths, dict)
    assert info["title"]
    assert info["version"]
    seen = set()
    for path, methods in paths.items():
        assert path.startswith("/")
        names = re.findall(r"\{(\w+)\}", path)
        assert len(names) == path.count("{") == len(set(names))
        for method, operation in methods.items():
            assert method in {"get", "put", "post", "delete"}
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            _check_parameters(operation.get("parameters", []), names)
            assert operation["responses"]
            for status, answer in operation["responses"].items():
                assert status == "default" or re.fullmatch("[1-5][0-9][0-9]", status)
                assert answer["description"]
                _check_content(answer["content"], document)
            if "requestBody" in operation:
                _check_content(operation["requestBody"]["content"], document)


def _check_parameters(parameters: list[dict[str, object]], in_path: list[str]) -> None:
    places = [(one["in"], one["name"]) for one in parameters]
    assert len(places) == len(set(places))
    assert {name for where, name in places if where == "path"} == set(in_path)
    for one in parameters:
        assert one["in"] in {"path", "query"}
        assert one["required"] is True or one["in"] == "query"
        assert one["description"]
        assert isinstance(one["schema"], dict)


def _check_content(content: dict[str, dict[str, object]], document: Mapping[str, object]) -> None:
    assert content
    for kind, media in content.items():
        assert re.fullmatch(r"[a-z]+/[a-z-]+", kind)
        _check_schema(media["schema"], document)


def _check_schema(schema: object, document: Mapping[str, object]) -> None:
    assert isinstance(schema, dict)
    if "$ref" in schema:
        found: object = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            assert isinstance(found, dict)
            found = found[part]
        assert isinstance(found, dict)
    types = {"string", "integer", "number", "boolean", "array", "object", "null"}
    kind = schema.get("type", [])
    assert set([kind] if isinstance(kind, str) else kind) <= types
    assert set(schema.get("required", ())) <= set(schema.get("properties", ()))
    for one in schema.get("properties", {}).values():
        _check_schema(one, document)
    if "items" in schema:
        _check_schema(schema["items"], document)
