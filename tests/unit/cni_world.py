"""A machine for the CNI tests: kernel, records on a tmpfs, and a supervisor that can be killed.

Its parts follow Linux where that matters: removing one end of a pair removes the other with what it
has; a namespace takes its links along; links cannot be made under a name that is in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from appliance.cni import ipam, steps
from appliance.cni import plan as of
from appliance.cni.ipam import PodRange, State
from appliance.cni.journal import Entry, dump, load
from appliance.cni.plan import Action, Network
from appliance.cni.spec import Attachment

BOOT = "boot-1"
RANGES = (PodRange.of("10.42.1.0/29"), PodRange.of("fd42::/64"))
NETWORK = Network("skbr0", 1380, RANGES, gate=True)


class KilledError(Exception):
    """kill -9 of the supervisor."""


@dataclass
class Inside:
    host: str
    addresses: set[str] = field(default_factory=set)
    routes: set[tuple[str, str]] = field(default_factory=set)
    up: bool = False


@dataclass
class World:
    namespaces: set[str] = field(default_factory=set)
    bridges: dict[str, set[str]] = field(default_factory=dict)
    # The host's end: whose port it is.
    hosts: dict[str, str] = field(default_factory=dict)
    inside: dict[tuple[str, str], Inside] = field(default_factory=dict)
    # Addresses at the gate.
    held: set[str] = field(default_factory=set)
    rules: bool = True
    # Whose an address is, as the node knows it.
    known: dict[str, str] = field(default_factory=dict)
    records: dict[Attachment, bytes] = field(default_factory=dict)
    lease_record: bytes = field(default_factory=lambda: ipam.dump(ipam.empty(BOOT)))
    # What the running supervisor has in its memory.
    state: State = field(default_factory=lambda: ipam.empty(BOOT))
    # How many actions until it is killed.
    fuse: int | None = None

    # The supervisor

    def perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if self.fuse is not None:
                if self.fuse == 0:
                    raise KilledError
                self.fuse -= 1
            self._do(action)

    def wanted(self, attachment: Attachment, netns: str, network: Network = NETWORK) -> Entry:
        self.state, lease = ipam.allocate(self.state, network.ranges, attachment)
        return of.entry_for(network, attachment, netns, lease)

    def add(self, attachment: Attachment, netns: str, network: Network = NETWORK) -> Entry:
        entry = self.wanted(attachment, netns, network)
        self.perform(of.add(entry, self.entry(attachment), self.snapshot(), self.state))
        return entry

    def delete(self, attachment: Attachment) -> None:
        lease = self.state.find(attachment)
        self.perform(of.delete(attachment, self.entry(attachment), lease))

    def gc(self, valid: Iterable[Attachment], busy: Iterable[Attachment] = ()) -> None:
        self.perform(of.collect("skerry", set(valid), self.entries(), self.state, set(busy)))

    def start(self) -> None:
        """A supervisor starts: all that it knows is on the disk and in the kernel."""
        self.fuse = None
        self.state = ipam.at_boot(ipam.load(self.lease_record), BOOT)
        self.state = of.recovered(self.entries(), self.state)
        self.reconcile()

    def reconcile(self) -> None:
        self.perform(of.reconcile(self.entries(), self.snapshot(), self.state))

    def entries(self) -> list[Entry]:
        found = [load(record, BOOT) for record in self.records.values()]
        return [one for one in found if one is not None]

    def entry(self, attachment: Attachment) -> Entry | None:
        record = self.records.get(attachment)
        return load(record, BOOT) if record is not None else None

    # The kernel

    def end_namespace(self, netns: str) -> None:
        self.namespaces.discard(netns)
        for key in [key for key in self.inside if key[0] == netns]:
            self._remove_veth(self.inside[key].host)

    def snapshot(self) -> steps.Snapshot:
        links = {
            name: steps.HostLink(addresses=frozenset(addresses))
            for name, addresses in self.bridges.items()
        } | {
            name: steps.HostLink(master=master, up=bool(master), mac=f"mac of {name}")
            for name, master in self.hosts.items()
        }
        inside = {
            key: steps.InsideLink(
                addresses=frozenset(one.addresses),
                routes=frozenset(one.routes),
                up=one.up,
                mac=f"mac in {key[0]}",
            )
            for key, one in self.inside.items()
        }
        return steps.Snapshot(
            frozenset(self.namespaces), links, inside, frozenset(self.held), self.rules
        )

    def traces(self) -> tuple[object, ...]:
        """All that is there of attachments; the bridge is shared and stays."""
        return (
            dict(self.hosts),
            {
                key: (one.host, one.addresses, one.routes, one.up)
                for key, one in self.inside.items()
            },
            set(self.held),
            sorted(self.records),
            ipam.load(self.lease_record).leases,
            self.state.leases,
        )

    def _remove_veth(self, host: str) -> None:
        self.hosts.pop(host, None)
        self.inside = {key: one for key, one in self.inside.items() if one.host != host}

    def _write_leases(self) -> None:
        self.lease_record = ipam.dump(self.state)

    def _do(self, action: Action) -> None:
        match action:
            case of.Write(entry):
                self.records[entry.attachment] = dump(entry, BOOT)
            case of.Forget(attachment):
                self.records.pop(attachment, None)
            case steps.Reserve():
                self._write_leases()
            case steps.Release(attachment):
                self.state = ipam.release(self.state, attachment)
                self._write_leases()
            case steps.Gate(addresses):
                self.held |= set(addresses)
            case steps.Unlearn(_, addresses):
                for one in addresses:
                    self.known.pop(one, None)
            case steps.Ungate(addresses):
                self.held -= set(addresses)
            case _:
                self._do_link(action)

    def _do_link(self, action: Action) -> None:
        match action:
            case steps.Bridge(name, _, _, gateways):
                self.bridges.setdefault(name, set()).update(gateways)
            case steps.Veth(host, netns, ifname):
                self._remove_veth(host)
                assert netns in self.namespaces
                assert (netns, ifname) not in self.inside
                self.hosts[host] = ""
                self.inside[netns, ifname] = Inside(host)
            case steps.RemoveVeth(host):
                self._remove_veth(host)
            case steps.Addresses(netns, ifname, addresses):
                self.inside[netns, ifname].addresses |= set(addresses)
                self.inside[netns, ifname].up = True
            case steps.Routes(netns, ifname, routes):
                self.inside[netns, ifname].routes |= set(routes)
            case steps.Port(host, bridge, mac, addresses):
                self.known |= dict.fromkeys(addresses, mac)
                assert bridge in self.bridges
                assert host in self.hosts
                self.hosts[host] = bridge
            case _:
                raise AssertionError(action)
