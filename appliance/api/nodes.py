"""``GET /v1/nodes``: the members of the network as this node knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from appliance.api.http import HttpError, Request
from appliance.api.router import Answer, Route

if TYPE_CHECKING:
    from appliance.control.views import NodeView

# Returns None while the node has no network.
Nodes = Callable[[], "Sequence[NodeView] | None"]

_NODE = {
    "type": "object",
    "required": ["node_id", "name", "state", "addresses", "roles", "labels", "grant_id"],
    "properties": {
        "node_id": {"type": "string"},
        "name": {"type": "string"},
        "state": {"enum": ["self", "up", "alive", "down"]},
        "addresses": {"type": "array", "items": {"type": "string"}},
        "roles": {"type": "array", "items": {"type": "string"}},
        "labels": {"type": "object"},
        "grant_id": {"type": "string"},
        "issued": {"type": "integer", "description": "Unix seconds"},
        "founder": {"type": "boolean"},
        "refused": {"type": "string", "description": "why it is not let in; empty: it is in"},
        "range": {"type": "string", "description": "its pods' IPv4 range; empty: none"},
    },
}


def node_list_routes(nodes: Nodes) -> dict[tuple[str, str], Route]:
    """Return the route."""

    async def answer(_: Request) -> Answer:
        found = nodes()
        if found is None:
            raise HttpError(
                HTTPStatus.CONFLICT,
                "this node is in no network yet",
                "Give it a token: skerry provision TOKEN",
            )
        return HTTPStatus.OK, {"nodes": found}

    return {
        ("GET", "/v1/nodes"): Route(
            answer,
            "The members of the network, by name",
            query=(),
            answer={
                "type": "object",
                "required": ["nodes"],
                "properties": {"nodes": {"type": "array", "items": _NODE}},
            },
            refusals={
                HTTPStatus.CONFLICT: "the node has no network yet, or its end of it does not run"
            },
        )
    }
