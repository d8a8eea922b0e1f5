"""Routes: what the local API answers to, who answers, and what the description says of it.

A route is found by method and path. A path is a template: ``{name}`` stands for one segment,
``{name*}`` at the end for all that is left, slashes and all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from appliance.api.http import BODY_LIMIT, HttpError, Request, Streamed, decode_percent

# A body is what is sent as JSON.
Answer = tuple[HTTPStatus, object] | Streamed
Handler = Callable[[Request], Awaitable[Answer]]
Schema = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Parameter:
    """What may stand in the query; ``what`` is for people, ``kind`` a JSON Schema type."""

    name: str
    what: str
    kind: str = "string"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """What a request has to bring."""

    what: str
    content_type: str = "application/json"
    schema: Schema = field(default_factory=lambda: {"type": "object"})


@dataclass(frozen=True, slots=True)
class Route:
    """One operation: its handler and what there is to say of it.

    ``query``: only these are taken; None: whatever comes is handed to the handler, undescribed.
    ``private``: for root and the supervisor's own user, not for its group.
    ``answer`` is the JSON Schema of a 200; ``refusals`` say when it is another status.
    """

    handler: Handler
    summary: str = ""
    query: tuple[Parameter, ...] | None = None
    path: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    answer: Schema = field(default_factory=lambda: {"type": "object"})
    events: bool = False
    refusals: Mapping[HTTPStatus, str] = field(default_factory=dict)
    body_limit: int = BODY_LIMIT
    private: bool = False


# What a table of routes holds; a bare handler is a route that nobody has described.
Table = Mapping[tuple[str, str], Route | Handler]


@dataclass(frozen=True, slots=True)
class _Template:
    segments: tuple[str, ...]

    def match(self, path: str) -> dict[str, str] | None:
        """Return the decoded parameters if ``path`` (as sent) fits, else None."""
        segments = path.split("/")
        found: dict[str, str] = {}
        for number, wanted in enumerate(self.segments):
            if wanted.endswith("*}"):
                rest = "/".join(segments[number:])
                return {**found, wanted[1:-2]: decode_percent(rest)} if rest else None
            if number >= len(segments):
                return None
            if wanted.startswith("{"):
                if not segments[number]:
                    return None
                found[wanted[1:-1]] = decode_percent(segments[number])
            elif decode_percent(segments[number]) != wanted:
                return None
        return found if len(segments) == len(self.segments) else None


class Router:
    """Finds the route of a request."""

    def __init__(self, table: Table) -> None:
        self._routes: dict[str, dict[str, Route]] = {}
        for (method, path), one in table.items():
            route = one if isinstance(one, Route) else Route(one)
            self._routes.setdefault(path, {})[method] = route
        # Literal paths first, then the longest template: the more a path says, the sooner.
        paths = sorted(self._routes, key=lambda path: ("{" in path, -path.count("/"), path))
        self._templates = [(_Template(tuple(path.split("/"))), path) for path in paths]

    def find(self, request: Request) -> tuple[Route, Request]:
        """Return the route and the request with its path's parameters.

        :raises HttpError: there is no such path (404), it does not take the method (405), or the
            query has what it does not take (400).
        """
        path, parameters = self._path(request)
        route = self._routes[path].get(request.method)
        if route is None:
            methods = sorted(self._routes[path])
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{request.path} does not take {request.method}",
                f"Use {' or '.join(methods)}.",
            )
        if route.query is not None:
            _check_query(request, route.query)
        return route, replace(request, parameters=parameters)

    def _path(self, request: Request) -> tuple[str, dict[str, str]]:
        for template, path in self._templates:
            parameters = template.match(request.path)
            if parameters is not None:
                return path, parameters
        known = sorted((method, path) for path, routes in self._routes.items() for method in routes)
        raise HttpError(
            HTTPStatus.NOT_FOUND,
            f"there is no {request.path}",
            "There are: " + ", ".join(f"{method} {path}" for method, path in known),
        )


def _check_query(request: Request, known: tuple[Parameter, ...]) -> None:
    names = {one.name for one in known}
    for name in request.query:
        if name not in names:
            raise HttpError(
                HTTPStatus.BAD_REQUEST,
                f"{request.path} does not take {name[:80]!r} in its query",
                f"It takes {', '.join(sorted(names))}." if names else "It takes none.",
            )
    for one in known:
        if one.required and one.name not in request.query:
            raise HttpError(
                HTTPStatus.BAD_REQUEST,
                f"{request.path} needs ?{one.name}=",
                f"{one.name}: {one.what}",
            )
