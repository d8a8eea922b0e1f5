"""From requests to actions: ADD, DEL, GC, and what to do after being killed in the middle.

Actions are performed in order, each once the one before is done; `Write` is on the disk before what
comes after it is begun. Killed anywhere, `reconcile` with the records and the kernel's state leads
to a world in which every attachment is there as a whole or gone without a trace.
An ADD that was interrupted is undone, not finished: its caller saw it fail, and sends a DEL.
Nothing here waits for another node.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from appliance.cni import steps as of
from appliance.cni.ipam import Lease, PodRange, State, hold
from appliance.cni.journal import Entry, Phase
from appliance.cni.spec import Attachment


@dataclass(frozen=True, slots=True)
class Write:
    """Write the attachment's record, in place of the one before."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the attachment's record; it may have none."""

    attachment: Attachment


Action = Write | Forget | of.Step | of.Undo


@dataclass(frozen=True, slots=True)
class Network:
    """How pods of this node are connected; the same for all of them.

    ``mtu`` is the overlay's. ``routes`` are destinations that a pod reaches through its gateway.
    With ``gate`` a new pod is held back until its policies are in place.
    """

    bridge: str
    mtu: int
    ranges: tuple[PodRange, ...]
    routes: tuple[str, ...] = ("0.0.0.0/0", "::/0")
    gate: bool = False

    def bridge_step(self) -> of.Bridge:
        """Return the step that all attachments share."""
        gateways = tuple(f"{pods.gateway}/{pods.network.prefixlen}" for pods in self.ranges)
        return of.Bridge(self.bridge, self.mtu, of.mac_of(self.ranges[0].gateway.packed), gateways)


def entry_for(network: Network, attachment: Attachment, netns: str, lease: Lease) -> Entry:
    """Return the entry of an attachment that is to be made; nothing is begun.

    Nothing but the gateway is on a container's link, not even its neighbours: all that it sends
    is routed by the node, past the node's filters.
    """
    host, mac = of.host_name(attachment), of.mac_of(lease.packed[0])
    inside = tuple(f"{one}/{one.max_prefixlen}" for one in lease.addresses)
    links = tuple((f"{pods.gateway}/{pods.network.max_prefixlen}", "") for pods in network.ranges)
    ways = tuple(
        (dst, str(pods.gateway))
        for pods in network.ranges
        for dst in network.routes
        if ipaddress.ip_network(dst).version == pods.network.version
    )
    # Before the link, so that it is the link that goes first when all is undone.
    addresses = tuple(str(one) for one in lease.addresses)
    gate = (of.Gate(addresses),) if network.gate else ()
    found: list[of.Step] = [
        of.Reserve(attachment),
        network.bridge_step(),
        *gate,
        of.Veth(host, netns, attachment.ifname, network.mtu, mac),
        of.Addresses(netns, attachment.ifname, inside),
        of.Routes(netns, attachment.ifname, links + ways),
        # Open last: nothing of a half-made container reaches the network.
        of.Port(host, network.bridge, mac, addresses),
    ]
    return Entry(attachment, netns, Phase.ADDING, tuple(found), 0)


def add(
    wanted: Entry, old: Entry | None, snapshot: of.Snapshot, leases: State
) -> tuple[Action, ...]:
    """Return what makes an attachment, given what is recorded of it.

    ``leases`` is the state with its lease. One that is there as it should be is left as it is;
    one that lacks something on the node's side gets that; any other is taken down first.
    """
    before: tuple[Action, ...] = ()
    if old is not None:
        if old.phase is Phase.ADDED and old.steps == wanted.steps:
            missing = _missing(old, snapshot, leases)
            if all(isinstance(step, of.REPAIRABLE) for step in missing):
                return missing
        before = tuple(
            action
            for action in delete(old.attachment, old, None)
            # The new one has the same lease.
            if not isinstance(action, Forget | of.Release)
        )
    found: list[Action] = list(before)
    for number, step in enumerate(wanted.steps, 1):
        found += [Write(msgspec.structs.replace(wanted, begun=number)), step]
    whole = msgspec.structs.replace(wanted, begun=len(wanted.steps), phase=Phase.ADDED)
    return (*found, Write(whole))


def delete(attachment: Attachment, entry: Entry | None, lease: Lease | None) -> tuple[Action, ...]:
    """Return what removes an attachment, the same after a failed step as after a kill.

    It needs no namespace: the host's end goes, and with it all that is inside. Without an entry
    everything is derived from the attachment and its lease, so a lost record leaks nothing.
    """
    if entry is None:
        addresses = tuple(str(one) for one in lease.addresses) if lease is not None else ()
        # The node may go on knowing who had them: whoever gets them is known by the same.
        undo: list[of.Undo] = [of.RemoveVeth(of.host_name(attachment))]
        if addresses:
            undo.append(of.Ungate(addresses))
        undo.append(of.Release(attachment))
        entry = Entry(attachment, "", Phase.REMOVING, (), 0, tuple(undo))
    # Each undo may be repeated, so one record before the first of them is enough.
    removing = msgspec.structs.replace(entry, phase=Phase.REMOVING)
    return (Write(removing), *entry.undos(), Forget(attachment))


def collect(
    network: str,
    valid: Collection[Attachment],
    entries: Iterable[Entry],
    leases: State,
    busy: Collection[Attachment] = (),
) -> tuple[Action, ...]:
    """Return what a GC of a network removes: all that is neither valid nor worked on."""
    known = {one.attachment: one for one in entries}
    held = {one.attachment: one for one in leases.leases}
    found: list[Action] = []
    for attachment in sorted({*known, *held}):
        if attachment.network == network and attachment not in valid and attachment not in busy:
            entry, lease = known.get(attachment), held.get(attachment)
            found += delete(attachment, entry, lease)
    return tuple(found)


def reconcile(
    entries: Iterable[Entry],
    snapshot: of.Snapshot,
    leases: State,
    *,
    busy: Collection[Attachment] = (),
    complete: bool = True,
) -> tuple[Action, ...]:
    """Return what makes the kernel, the leases (`recovered` first) and the records agree.

    Half-made attachments are undone and half-removed ones removed; one whose namespace is gone
    is removed; what the node's side of a whole one lacks is put right. What nobody recorded goes,
    unless a record could not be read (``complete`` False): it may belong to a running container,
    and only the runtime, by GC or DEL, can say that it does not.
    """
    found: list[Action] = []
    kept = set(busy)
    recorded = {one.attachment: one for one in entries}
    for entry in recorded.values():
        if entry.attachment in busy:
            continue
        if entry.phase is Phase.ADDED and entry.netns in snapshot.namespaces:
            kept.add(entry.attachment)
            missing = _missing(entry, snapshot, leases)
            # A port without its link cannot be put right either; CHECK tells, and DEL ends it.
            if of.host_name(entry.attachment) in snapshot.links:
                found += [step for step in missing if isinstance(step, of.REPAIRABLE)]
        else:
            found += delete(entry.attachment, entry, None)
    if complete:
        found += _orphans(kept, recorded, snapshot, leases)
    return tuple(found)


def recovered(entries: Iterable[Entry], leases: State) -> State:
    """Return the leases, with those that only the records of whole attachments still tell of.

    After the record of leases was lost: what a running container has must not be given away.
    """
    for entry in entries:
        packed = tuple(
            ipaddress.ip_interface(one).ip.packed
            for step in entry.steps
            if isinstance(step, of.Addresses)
            for one in step.addresses
        )
        if entry.phase is Phase.ADDED and packed:
            leases = hold(leases, Lease(entry.attachment, packed))
    return leases


def _missing(entry: Entry, snapshot: of.Snapshot, leases: State) -> tuple[of.Step, ...]:
    leased = frozenset(one.attachment for one in leases.leases)
    return tuple(step for step in entry.steps if not of.is_done(step, snapshot, leased))


def _orphans(
    kept: Collection[Attachment],
    recorded: Mapping[Attachment, Entry],
    snapshot: of.Snapshot,
    leases: State,
) -> list[Action]:
    names = {of.host_name(one) for one in {*kept, *recorded}}
    known = {
        str(one)
        for lease in leases.leases
        if lease.attachment in kept or lease.attachment in recorded
        for one in lease.addresses
    }
    found: list[Action] = [
        of.RemoveVeth(name)
        for name in sorted(snapshot.links)
        if of.is_host_name(name) and name not in names
    ]
    stray = tuple(sorted(snapshot.held - known))
    if stray:
        found.append(of.Ungate(stray))
    for lease in leases.leases:
        if lease.attachment not in kept and lease.attachment not in recorded:
            found += delete(lease.attachment, None, lease)
    return found
