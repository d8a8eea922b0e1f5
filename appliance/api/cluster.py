"""``GET /v1/cluster`` and ``/v1/range``: what Kubernetes has to know of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from appliance.api.http import HttpError, Request
from appliance.api.router import Answer, Parameter, Route
from appliance.problem import Problem


@dataclass(frozen=True, slots=True)
class RangeView:
    """A node's pod range: what its pods have, and the gateways are the first addresses."""

    ipv4: str
    ipv6: str


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The network's settings that Kubernetes lives by."""

    host_range: str
    pod_cidr: str
    node_bits: int
    service_cidr: str
    servers: int
    expected_nodes: int | None
    cni: str = "native"


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member that is in, this node too; ``state`` as in ``/v1/nodes``.

    ``range`` is what others hold by the ledger. ``fixed``: the operator said so. ``labels`` are its
    grant's.
    """

    node_id: str
    name: str
    state: str
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    founder: bool
    range: RangeView | None
    fixed: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ApiView:
    """The address that follows the leader of this node's cluster; ``why`` there is none in use."""

    address: str = ""
    why: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The network as Kubernetes on this node needs it.

    ``interface`` and ``mtu``: of what carries pods' packets; without a tunnel the first uplink's.
    ``addresses``: IPv4 first; overlay addresses, and without a tunnel where members are reached.
    ``range``: None until it may be given to pods, see ``problems``. ``pods_ipv6``: the /48 of all
    pods. ``cluster``: which of several this node belongs to, empty for the one without a name;
    ``services``: that one's range, None if another cluster has it (`provisioning.clusters`).
    ``network_key``: the root's public key, hexadecimal.
    """

    node_id: str
    name: str
    network: str
    network_id: str
    network_key: str
    vpn: bool
    interface: str
    mtu: int
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    founder: bool
    settings: ClusterSettings
    range: RangeView | None
    pods_ipv6: str
    cluster: str
    services: str | None
    api: ApiView
    problems: tuple[Problem, ...]
    members: tuple[MemberView, ...]


# Returns None while the node has no network.
Provider = Callable[[], ClusterView | None]

_TEXTS = {"type": "array", "items": {"type": "string"}}
_RANGE = {
    "type": ["object", "null"],
    "required": ["ipv4", "ipv6"],
    "properties": {"ipv4": {"type": "string"}, "ipv6": {"type": "string"}},
}
_MEMBER = {
    "node_id": {"type": "string"},
    "name": {"type": "string"},
    "state": {"enum": ["self", "up", "alive", "down"]},
    "addresses": _TEXTS,
    "roles": _TEXTS,
    "founder": {"type": "boolean"},
    "range": _RANGE,
    "fixed": {"type": "boolean", "description": "the operator fixed its range"},
    "labels": {"type": "object", "description": "its grant's"},
}
_SETTINGS = {
    "host_range": {"type": "string"},
    "pod_cidr": {"type": "string"},
    "node_bits": {"type": "integer"},
    "service_cidr": {"type": "string"},
    "servers": {"type": "integer"},
    "expected_nodes": {"type": ["integer", "null"]},
    "cni": {"enum": ["native", "flannel"]},
}
_API = {
    "address": {"type": "string", "description": "follows the leader; empty: there is none"},
    "why": {"type": "string", "description": "why there is none in use; empty: it is"},
    "hint": {"type": "string"},
}
_PROBLEM = {
    "code": {"type": "string"},
    "message": {"type": "string"},
    "hint": {"type": "string"},
}
_CLUSTER = {
    "node_id": {"type": "string"},
    "name": {"type": "string"},
    "network": {"type": "string"},
    "network_id": {"type": "string"},
    "network_key": {"type": "string", "description": "the root's public key, hexadecimal"},
    "vpn": {"type": "boolean"},
    "interface": {"type": "string", "description": "what carries pods' packets"},
    "mtu": {"type": "integer", "description": "of that interface"},
    "addresses": _TEXTS,
    "roles": _TEXTS,
    "founder": {"type": "boolean"},
    "settings": {"type": "object", "required": [*_SETTINGS], "properties": _SETTINGS},
    "range": _RANGE,
    "pods_ipv6": {"type": "string", "description": "the IPv6 range of all pods"},
    "cluster": {"type": "string", "description": "which of several; empty: it has no name"},
    "services": {
        "type": ["string", "null"],
        "description": "the range of that cluster's services; null: another cluster has it",
    },
    "api": {"type": "object", "required": [*_API], "properties": _API},
    "problems": {
        "type": "array",
        "items": {"type": "object", "required": [*_PROBLEM], "properties": _PROBLEM},
    },
    "members": {
        "type": "array",
        "items": {"type": "object", "required": [*_MEMBER], "properties": _MEMBER},
    },
}
_REFUSALS = {HTTPStatus.CONFLICT: "the node has no network yet, or its end of it does not run"}


def cluster_routes(provider: Provider) -> dict[tuple[str, str], Route]:
    """Return the routes."""

    def known() -> ClusterView:
        found = provider()
        if found is None:
            raise HttpError(
                HTTPStatus.CONFLICT,
                "this node is in no network yet",
                "Give it a token: skerry provision TOKEN",
            )
        return found

    async def cluster(_: Request) -> Answer:
        return HTTPStatus.OK, known()

    async def one_range(request: Request) -> Answer:
        return HTTPStatus.OK, _member(known(), request.query.get("node"))

    what = "a member's name or id; without it, this node"
    return {
        ("GET", "/v1/cluster"): Route(
            cluster,
            "What Kubernetes on this node has to know: settings, members, pod ranges",
            query=(),
            answer={"type": "object", "required": [*_CLUSTER], "properties": _CLUSTER},
            refusals=_REFUSALS,
        ),
        ("GET", "/v1/range"): Route(
            one_range,
            "Which pod range a member has",
            query=(Parameter("node", what),),
            answer={"type": "object", "required": [*_MEMBER], "properties": _MEMBER},
            refusals={**_REFUSALS, HTTPStatus.NOT_FOUND: "no member is called so"},
        ),
    }


def _member(view: ClusterView, asked: str | None) -> MemberView:
    wanted = view.node_id if asked is None else asked
    for one in view.members:
        if wanted in {one.node_id, one.name}:
            return one
    raise HttpError(
        HTTPStatus.NOT_FOUND,
        f"{wanted[:80]!r} is neither a member's name nor its id",
        "`skerry status` shows the members.",
    )
