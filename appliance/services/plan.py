"""From what is wanted, offered and healthy to what the kernel is to do: pure.

Which offers a connection uses: those of members that are up, and well; of them those of the node's
own cluster, if there are any (spill-over); with ``nodes`` given, theirs only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.problem import Problem
from appliance.services.offers import Offer, Protocol, service_address
from appliance.services.wishes import KUBERNETES, Connection, Exposure, Target, Wishes, target_of
from provisioning.keys import id_text

BACKENDS_MAX = 64
# Services of whole clusters that one node reaches.
CLUSTER_SERVICES_MAX = 256


@dataclass(frozen=True, slots=True)
class Member:
    """A member: ``ipv4`` of the overlay; ``cluster`` None: outside of all (role none)."""

    node_id: bytes
    name: str
    ipv4: str | None
    up: bool
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """What this node is among."""

    network_id: bytes
    own: bytes
    members: Mapping[bytes, Member]


@dataclass(frozen=True, slots=True, order=True)
class Way:
    """One translation: what comes for ``address:port`` goes to one of the targets.

    ``inward``: from the overlay to this node's own address, and then it may have no targets: what
    is exposed and not well is refused. Else from here to a service's.
    """

    inward: bool
    address: str
    protocol: str
    port: int
    targets: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to offer, what to translate, and which names have which addresses on this node."""

    offers: tuple[Offer, ...]
    ways: tuple[Way, ...]
    problems: tuple[Problem, ...] = ()
    names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """What a cluster agent tells: exposures by annotation, and the pods behind services."""

    exposures: tuple[Exposure, ...] = ()
    pods: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a target answers; a UDP one that need not is always well.

    What answers in one protocol says nothing of the other at the same port.
    """

    target: Target
    protocol: str
    answers: bool = False


def questions_of(one: Exposure, network: Network, kubernetes: Kubernetes) -> tuple[Question, ...]:
    """Return what is to be asked before a service is offered as well."""
    targets = targets_of(one, network, kubernetes)
    return tuple(Question(at, one.protocol, one.probe) for at in targets)


def targets_of(one: Exposure, network: Network, kubernetes: Kubernetes) -> tuple[Target, ...]:
    """Return where an exposed service is; none if nobody knows (yet)."""
    if one.to is None:
        own = network.members.get(network.own)
        return () if own is None or own.ipv4 is None else (Target(own.ipv4, one.port),)
    if one.to.startswith(KUBERNETES):
        return kubernetes.pods.get(one.to, ())[:BACKENDS_MAX]
    return (target_of(one.to),)


def wanted(wishes: Wishes, kubernetes: Kubernetes) -> tuple[tuple[Exposure, ...], list[Problem]]:
    """Return all exposures; a person's goes before an annotation of the same name or port.

    What comes for a port of the node goes to one place: two names of that are one port's.
    """
    found: dict[tuple[str, str], Exposure] = {}
    at_port: dict[tuple[str, int], Exposure] = {}
    problems = []
    for one in (*wishes.exposures, *kubernetes.exposures):
        taken = found.setdefault((one.name, one.protocol), one)
        if taken != one:
            problems.append(
                Problem(
                    "service-exposed-twice",
                    f"{one.name} ({one.protocol}) is exposed twice on this node: {taken.to or ''} "
                    f"port {taken.port} counts, {one.to or ''} port {one.port} does not",
                    "Give one of them another name.",
                )
            )
            continue
        first = at_port.setdefault((one.protocol, one.port), one)
        if first.to != one.to:
            del found[one.name, one.protocol]
            problems.append(
                Problem(
                    "service-port-taken",
                    f"{one.name} ({one.protocol}) is not exposed: the node's port {one.port} is "
                    f"that of {first.name} already",
                    "Let one of them have another port.",
                )
            )
    return tuple(found.values()), problems


def plan(
    wishes: Wishes,
    network: Network,
    offers: Sequence[Offer],
    well: Collection[Question],
    kubernetes: Kubernetes,
) -> Plan:
    """Return what this node is to do. ``well``: the own targets that answer, each as asked."""
    own = network.members.get(network.own)
    if own is None or own.ipv4 is None:
        return Plan((), ())
    exposures, problems = wanted(wishes, kubernetes)
    made: list[Offer] = []
    ways: list[Way] = []
    here: dict[tuple[str, str], tuple[tuple[str, int], ...]] = {}
    for one in exposures:
        targets = [
            asked.target for asked in questions_of(one, network, kubernetes) if asked in well
        ]
        made.append(Offer(one.name, one.protocol, network.own, one.port, bool(targets)))
        here[one.name, one.protocol] = tuple(sorted((at.host, at.port) for at in targets))
        if one.to is not None:
            at = here[one.name, one.protocol]
            ways.append(
                Way(inward=True, address=own.ipv4, protocol=one.protocol, port=one.port, targets=at)
            )
    said = [*made, *(one for one in offers if one.node != network.own)]
    connections, more = connections_of(wishes, network, said)
    names, clashes = _addresses(connections, network)
    for connection in connections:
        if (address := names.get(connection.name)) is not None:
            ways += _connect(connection, address, network, said, here)
    return Plan(
        tuple(sorted(made)),
        tuple(sorted(set(ways))),
        (*problems, *more, *clashes),
        tuple(sorted(names.items())),
    )


def connections_of(
    wishes: Wishes, network: Network, offers: Iterable[Offer]
) -> tuple[tuple[Connection, ...], tuple[Problem, ...]]:
    """Return what is to be reached: what was named, then what members of whole clusters offer.

    A cluster's services are reached at its own members only, which the root key's word makes it.
    If there are too many, those count that stand first among their node's, so no member can keep
    out those of the others.
    """
    by_node: dict[bytes, set[str]] = {}
    nodes: dict[str, set[str]] = {}
    for one in offers:
        member = network.members.get(one.node)
        if member is not None and member.cluster is not None and member.cluster in wishes.clusters:
            by_node.setdefault(one.node, set()).add(one.name)
            nodes.setdefault(one.name, set()).add(id_text(one.node))
    rank: dict[str, int] = {}
    for some in by_node.values():
        for number, name in enumerate(sorted(some)):
            rank[name] = min(number, rank.get(name, number))
    explicit = {one.name for one in wishes.connections}
    order = sorted((number, name) for name, number in rank.items() if name not in explicit)
    found = [
        Connection(name, nodes=tuple(sorted(nodes[name])))
        for _, name in order[:CLUSTER_SERVICES_MAX]
    ]
    problems = []
    if len(order) > CLUSTER_SERVICES_MAX:
        problems.append(
            Problem(
                "service-too-many",
                f"the clusters offer {len(order)} services: {CLUSTER_SERVICES_MAX} are reached",
                "Reach those by name that are needed: skerry service connect NAME.",
            )
        )
    return (*wishes.connections, *found), tuple(problems)


def _addresses(
    connections: Iterable[Connection], network: Network
) -> tuple[dict[str, str], list[Problem]]:
    """Return the address of each name; of two with one address the first has it."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    problems = []
    for one in connections:
        address = str(service_address(network.network_id, one.name))
        rival = taken.setdefault(address, one.name)
        if rival == one.name:
            names[one.name] = address
        else:
            problems.append(_clash(one.name, rival, address))
    return names, problems


def _connect(
    connection: Connection,
    address: str,
    network: Network,
    offers: Iterable[Offer],
    here: Mapping[tuple[str, str], tuple[tuple[str, int], ...]],
) -> Iterable[Way]:
    named = [one for one in offers if one.name == connection.name and allowed(one, connection)]
    for protocol in Protocol:
        spoken = [one for one in named if one.protocol == protocol.value]
        if not spoken:
            continue
        port = connection.port or min(one.port for one in spoken)
        targets: list[tuple[str, int]] = []
        for one in usable(spoken, network):
            ipv4 = network.members[one.node].ipv4
            if one.node == network.own:
                targets += here[one.name, one.protocol]
            elif ipv4 is not None:
                targets.append((ipv4, one.port))
        chosen = tuple(sorted(set(targets))[:BACKENDS_MAX])
        if chosen:
            yield Way(
                inward=False, address=address, protocol=protocol.value, port=port, targets=chosen
            )


def usable(offers: Iterable[Offer], network: Network) -> list[Offer]:
    """Return the offers that count now: up, well, and of the own cluster if it has any."""
    good = [
        one
        for one in offers
        if one.healthy
        and (member := network.members.get(one.node)) is not None
        and member.up
        and member.ipv4 is not None
    ]
    near = [one for one in good if is_near(one, network)]
    return near or good


def is_near(one: Offer, network: Network) -> bool:
    """Say whether an offer is of the own cluster; a machine outside of all is near to none."""
    own, member = network.members.get(network.own), network.members.get(one.node)
    if own is None or member is None or own.cluster is None:
        return False
    return member.cluster == own.cluster


def allowed(one: Offer, connection: Connection) -> bool:
    """Say whether a connection may use an offer, well or not."""
    return not connection.nodes or id_text(one.node) in connection.nodes


def _clash(name: str, rival: str, address: str) -> Problem:
    return Problem(
        "service-address-clash",
        f"{name} would be reached at {address}, as {rival} is: only {rival} can be",
        "Expose one of them under another name.",
    )
