"""The routes about the node itself: what there is to say of them. The supervisor answers."""

from __future__ import annotations

from http import HTTPStatus

from appliance.api.router import Body, Handler, Route


def node_routes(
    *, status: Handler, health: Handler, token: Handler
) -> dict[tuple[str, str], Route]:
    """Return the routes that every node has, with a network or without."""
    return {
        ("GET", "/v1/status"): Route(status, "What this node is doing, and with whom", query=()),
        ("GET", "/v1/health"): Route(
            health,
            "Whether this node is as it should be, and why not",
            query=(),
            answer={
                "type": "object",
                "required": ["healthy", "state", "why"],
                "properties": {
                    "healthy": {"type": "boolean"},
                    "state": {"type": "string"},
                    "why": {"type": "array", "items": {"type": "object"}},
                },
            },
        ),
        ("POST", "/v1/token"): Route(
            token,
            "Give this node its token",
            query=(),
            body=Body("the token as text", "text/plain", {"type": "string"}),
            refusals={
                HTTPStatus.BAD_REQUEST: "the token is none, or does not count now",
                HTTPStatus.CONFLICT: "no token is wanted now",
                HTTPStatus.INSUFFICIENT_STORAGE: "the identity could not be written",
            },
        ),
    }
