"""What a runtime is told: the result of an ADD, what a CHECK finds, the STATUS."""

from __future__ import annotations

from appliance.cni import steps as of
from appliance.cni.errors import CniError, Code
from appliance.cni.ipam import PodRange, State, allocate
from appliance.cni.journal import Entry, Phase
from appliance.cni.results import Address, Interface, Result, Route
from appliance.cni.spec import Attachment

_INSIDE = 2
# A name no container can have, hence nobody's lease.
_NOBODY = Attachment("", "", "")


def result_of(entry: Entry, snapshot: of.Snapshot) -> Result:
    """Return the result of an ADD: the bridge, the host's end, the container's (index 2)."""
    interfaces: list[Interface] = []
    ips: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    gateways: list[str] = []
    for step in entry.steps:
        match step:
            case of.Bridge(name, _, _, given):
                gateways = [one.partition("/")[0] for one in given]
                interfaces.append(_host(name, snapshot))
            case of.Veth(host, _, _, mtu):
                interfaces.append(_host(host, snapshot))
                inside = snapshot.inside.get((entry.netns, entry.attachment.ifname))
                mac = inside.mac if inside is not None else ""
                interfaces.append(Interface(entry.attachment.ifname, mac, mtu, entry.netns))
            case of.Addresses(_, _, addresses):
                ips = tuple(
                    Address(address, gateway, _INSIDE)
                    for address, gateway in zip(addresses, gateways, strict=True)
                )
            case of.Routes(_, _, given_routes):
                routes = tuple(Route(dst, gw) for dst, gw in given_routes)
            case _:
                pass
    return Result(tuple(interfaces), ips, routes)


def check(
    attachment: Attachment,
    netns: str,
    previous: Result,
    entry: Entry | None,
    snapshot: of.Snapshot,
    leases: State,
) -> None:
    """Compare an attachment with what its ADD answered. Raises CniError with every difference.

    Chained plugins may have changed what is inside, so it is compared with ``previous``, which
    has been through them; what a result does not tell is compared with the record.
    """
    if entry is None or entry.phase is not Phase.ADDED:
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"the container {attachment.container} has no {attachment.ifname} in "
            f"{attachment.network}",
        )
    wrong = [] if snapshot.rules else ["the node's own packet filter rules are missing"]
    wrong += _against_record(entry, snapshot, leases)
    wrong += _against_result(attachment, netns, previous, snapshot)
    if wrong:
        raise CniError(
            Code.NOT_AS_EXPECTED,
            f"{attachment.ifname} of container {attachment.container} is not as it was made",
            details="; ".join(wrong),
        )


def check_status(ranges: tuple[PodRange, ...], leases: State, *, overlay: bool) -> None:
    """Raise CniError if an ADD would fail (50), or containers are cut off as well (51).

    ``overlay`` says that this node's end of the overlay is there. Whether any other member can be
    reached is no question: a node that is alone starts its pods.
    """
    if not ranges:
        raise CniError(
            Code.UNAVAILABLE,
            "this node has no pod range yet",
            hint="the ledger gives it one; `skerry status` says what it waits for",
        )
    if not overlay:
        raise CniError(
            Code.LIMITED,
            "the overlay's interface is not there: pods reach only pods of this node",
            hint="`skerry status` says why",
        )
    try:
        allocate(leases, ranges, _NOBODY)
    except CniError as error:
        raise CniError(Code.UNAVAILABLE, str(error), hint=error.hint) from error


def _host(name: str, snapshot: of.Snapshot) -> Interface:
    link = snapshot.links.get(name, of.HostLink())
    return Interface(name, link.mac, link.mtu)


def _against_record(entry: Entry, snapshot: of.Snapshot, leases: State) -> list[str]:
    leased = frozenset(one.attachment for one in leases.leases)
    wrong = []
    for step in entry.steps:
        if of.is_done(step, snapshot, leased):
            continue
        match step:
            case of.Reserve():
                wrong.append("its addresses are not reserved")
            case of.Bridge(name, _, _, gateways):
                wrong.append(f"the bridge {name} is not up with {', '.join(gateways)}")
            case of.Veth(host) if host not in snapshot.links:
                wrong.append(f"its link {host} on the node is missing")
            case of.Port(host, bridge):
                wrong.append(f"{host} is not an open port of {bridge}")
            case _:
                pass
    return wrong


def _against_result(
    attachment: Attachment, netns: str, previous: Result, snapshot: of.Snapshot
) -> list[str]:
    inside = snapshot.inside.get((netns, attachment.ifname))
    if inside is None:
        return [f"there is no {attachment.ifname} in {netns}"]
    wrong = [] if inside.up else [f"{attachment.ifname} is down"]
    index = next(
        (
            number
            for number, one in enumerate(previous.interfaces)
            if one.name == attachment.ifname and one.sandbox
        ),
        None,
    )
    if index is None:
        wrong.append(f"prevResult has no {attachment.ifname} in a sandbox")
    elif previous.interfaces[index].mac not in {"", inside.mac}:
        wrong.append(f"its hardware address is {inside.mac}, not {previous.interfaces[index].mac}")
    wrong += [
        f"it lacks the address {ip.address}"
        for ip in previous.ips
        if ip.interface in {None, index} and ip.address not in inside.addresses
    ]
    for route in previous.routes:
        ways = {gw for dst, gw in inside.routes if dst == route.dst}
        if not ways or (route.gw and route.gw not in ways):
            wrong.append(f"it lacks the route to {route.dst}")
    return wrong
