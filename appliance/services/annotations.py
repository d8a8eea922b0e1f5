"""Kubernetes Services that say by annotation that they want to be exposed: pure.

``skerry/expose: NAME`` exposes the Service's first port; ``NAME:PORT, NAME2:PORT2`` (names or
numbers of its ports) those. ``skerry/expose-probe: "true"`` asks UDP services too. The input is the
API's JSON; whatever is malformed there is left out and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from appliance.problem import Problem
from appliance.services.errors import ServiceError
from appliance.services.offers import Protocol, is_port
from appliance.services.plan import BACKENDS_MAX
from appliance.services.wishes import (
    KUBERNETES,
    MOST,
    Exposure,
    Target,
    check_exposure,
    read_kubernetes,
    target_of,
)

EXPOSE, PROBE = "skerry/expose", "skerry/expose-probe"
_SERVICE_LABEL = "kubernetes.io/service-name"
_TEXT_MAX = 1024
PROBLEMS_MAX = 32


def desired_from(
    services: Iterable[Mapping[str, Any]],
) -> tuple[tuple[Exposure, ...], tuple[Problem, ...]]:
    """Return what the Services (API objects) want to have exposed, and what can't be.

    Of two that want one name the first has it. At most `PROBLEMS_MAX` are said: whoever may
    annotate a Service writes neither our log nor our memory full.
    """
    found: dict[tuple[str, str], Exposure] = {}
    problems: list[Problem] = []
    for service in services:
        where = _where(service)
        text = _annotations(service).get(EXPOSE)
        if where is None or not isinstance(text, str) or not text.strip():
            continue
        for word in text[:_TEXT_MAX].split(","):
            try:
                one = _exposure(service, where, word.strip())
                _take(found, one)
            except ServiceError as error:
                if len(problems) == PROBLEMS_MAX:
                    break
                problems.append(
                    Problem(
                        "service-annotation",
                        f"the annotation {EXPOSE} of the Service {where}: {error}",
                        "Write a name, or NAME:PORT, NAME:PORT ...",
                    )
                )
    return tuple(found.values()), tuple(problems)


def _take(found: dict[tuple[str, str], Exposure], one: Exposure) -> None:
    taken = found.get((one.name, one.protocol))
    if taken is not None and taken != one:
        raise ServiceError(f"{one.name} ({one.protocol}) is that of {taken.to} already")
    if taken is None and len(found) == MOST:
        raise ServiceError(f"{MOST} services are exposed already, {one.name} is not")
    found[one.name, one.protocol] = one


def pods_of(
    exposures: Iterable[Exposure], slices: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[Target, ...]]:
    """Return the ready pods behind each exposed Service, from the cluster's EndpointSlices."""
    by_service: dict[str, list[Mapping[str, Any]]] = {}
    for one in slices:
        metadata = _map(one.get("metadata"))
        name = _map(metadata.get("labels")).get(_SERVICE_LABEL)
        if one.get("addressType") == "IPv4":
            by_service.setdefault(f"{metadata.get('namespace')}/{name}", []).append(one)
    found = {}
    for exposure in exposures:
        if exposure.to is None or not exposure.to.startswith(KUBERNETES):
            continue
        namespace, name, port = read_kubernetes(exposure.to)
        targets: set[tuple[str, int]] = set()
        for one in by_service.get(f"{namespace}/{name}", ()):
            targets |= set(_targets(one, port, exposure.protocol))
        ordered = sorted(targets)[:BACKENDS_MAX]
        found[exposure.to] = tuple(Target(host, number) for host, number in ordered)
    return found


def _exposure(service: Mapping[str, Any], where: str, word: str) -> Exposure:
    name, _, wanted = word.partition(":")
    ports = [one for one in _list(_map(service.get("spec")).get("ports")) if isinstance(one, dict)]
    chosen = [
        one for one in ports if not wanted or wanted in {one.get("name"), str(one.get("port"))}
    ]
    if not chosen:
        raise ServiceError(f"it has no port {wanted!r}" if wanted else "it has no port")
    port = chosen[0]
    number, protocol = port.get("port"), str(port.get("protocol", "TCP")).lower()
    if not isinstance(number, int) or protocol not in {one.value for one in Protocol}:
        raise ServiceError(f"its port {number} can't be bridged")
    # Endpoints' ports have the names of the Service's; a single one has none.
    label = port.get("name") or ""
    to = f"{KUBERNETES}{where}" + (f":{label}" if label else "")
    probe = _annotations(service).get(PROBE) == "true"
    exposure = Exposure(name, protocol, number, to, probe)
    check_exposure(exposure)
    return exposure


def _targets(one: Mapping[str, Any], port: str, protocol: str) -> Iterable[tuple[str, int]]:
    numbers = [
        found.get("port")
        for found in _list(one.get("ports"))
        if isinstance(found, dict)
        and (not port or found.get("name") == port)
        and str(found.get("protocol", "TCP")).lower() == protocol
    ]
    for endpoint in _list(one.get("endpoints")):
        if not isinstance(endpoint, dict) or _map(endpoint.get("conditions")).get("ready") is False:
            continue
        for host in _list(endpoint.get("addresses"))[:1]:
            for number in numbers[:1]:
                if isinstance(number, int) and is_port(number):
                    try:
                        target = target_of(f"{host}:{number}")
                    except ServiceError:
                        continue
                    yield target.host, target.port


def _where(service: Mapping[str, Any]) -> str | None:
    metadata = _map(service.get("metadata"))
    where = f"{metadata.get('namespace')}/{metadata.get('name')}"
    try:
        read_kubernetes(f"{KUBERNETES}{where}")
    except ServiceError:
        return None
    return where


def _annotations(service: Mapping[str, Any]) -> Mapping[str, Any]:
    return _map(_map(service.get("metadata")).get("annotations"))


def _map(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _list(found: object) -> list[Any]:
    return found if isinstance(found, list) else []
