"""The description of the local API (OpenAPI 3.1), made from the routes themselves."""

from __future__ import annotations

import re
from http import HTTPStatus

from appliance.api.http import Request
from appliance.api.router import Answer, Handler, Parameter, Route, Table
from skerry import __version__

PATH = "/v1/openapi.json"
_TEMPLATE = re.compile(r"\{(\w+)(\*?)\}")
_ERROR = {
    "type": "object",
    "required": ["error", "hint"],
    "properties": {
        "error": {"type": "string", "description": "what is wrong"},
        "hint": {"type": "string", "description": "the way out"},
    },
}
_ABOUT = (
    "What a node's supervisor answers on its unix socket /run/skerry/api.sock, to root, the user "
    "skerry and members of the group skerry (the kernel tells who asks; there is no password). One "
    "request a connection. Where a path's last parameter may contain slashes it says so."
)


def described(table: Table) -> dict[tuple[str, str], Route | Handler]:
    """Return the table with a route that describes all of it, itself included."""
    whole = dict(table)

    async def answer(_: Request) -> Answer:
        return HTTPStatus.OK, description(whole)

    whole["GET", PATH] = Route(answer, "This description", query=())
    return whole


def description(table: Table) -> dict[str, object]:
    """Return the OpenAPI document of a table of routes."""
    paths: dict[str, dict[str, object]] = {}
    for (method, path), one in sorted(table.items(), key=lambda item: item[0][::-1]):
        route = one if isinstance(one, Route) else Route(one)
        shown = _TEMPLATE.sub(r"{\1}", path)
        paths.setdefault(shown, {})[method.lower()] = _operation(method, path, route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Skerry local API", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "http://localhost", "description": "over the unix socket"}],
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }


def _operation(method: str, path: str, route: Route) -> dict[str, object]:
    content: dict[str, object] = {"application/json": {"schema": route.answer}}
    if route.events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers: dict[str, object] = {"200": {"description": "done", "content": content}}
    for status, when in sorted(route.refusals.items()):
        answers[str(status.value)] = {"description": when, "content": error}
    answers["default"] = {"description": "refused, with the way out", "content": error}
    operation: dict[str, object] = {
        "operationId": _operation_id(method, path),
        "summary": route.summary,
        "responses": answers,
    }
    parameters = [_path_parameter(name, rest, route) for name, rest in _TEMPLATE.findall(path)]
    parameters += [_query_parameter(one) for one in route.query or ()]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "description": route.body.what,
            "required": True,
            "content": {route.body.content_type: {"schema": route.body.schema}},
        }
    return operation


def _path_parameter(name: str, rest: str, route: Route) -> dict[str, object]:
    what = route.path.get(name, "")
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": f"{what}{' (slashes allowed)' if rest and 'slash' not in what else ''}",
        "schema": {"type": "string"},
    }


def _query_parameter(one: Parameter) -> dict[str, object]:
    return {
        "name": one.name,
        "in": "query",
        "required": one.required,
        "description": one.what,
        "schema": {"type": one.kind},
    }


def _operation_id(method: str, path: str) -> str:
    words = re.findall(r"\w+", path.removeprefix("/v1"))
    return "_".join([method.lower(), *words])
