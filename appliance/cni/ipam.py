"""Who has which pod address on this node: frozen states and what leads from one to the next.

A state belongs to one boot of the machine. A reboot takes every namespace, so leases of an earlier
boot are void and nothing leaks over it. Addresses go round: the next one is looked for behind the
last one given, so that one that was just released does not come back at once to a client that still
remembers who had it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec

from appliance.cni.errors import CniError, Code
from appliance.cni.spec import Attachment
from provisioning import codec
from provisioning.errors import FormatError
from skerry.errors import SkerryError

FORMAT = 1
# A node has far fewer pods; more is not from us.
STATE_MAX = 1 << 22
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class IpamError(SkerryError):
    """A range that gives no addresses, or a record that cannot be true."""


@dataclass(frozen=True, slots=True)
class PodRange:
    """The node's part of the pods' range in one family, and what of it no pod gets.

    Not given away: the gateway, ``reserved``, the network's own address, and IPv4's broadcast.
    """

    network: IPNetwork
    gateway: IPAddress
    reserved: frozenset[IPAddress] = frozenset()

    @classmethod
    def of(cls, text: str, reserved: Iterable[str] = ()) -> PodRange:
        """Return the range of a prefix; its gateway is the first address. Raises IpamError."""
        try:
            network = ipaddress.ip_network(text)
            kept = frozenset(ipaddress.ip_address(one) for one in reserved)
        except ValueError as error:
            raise IpamError(f"the pod range is wrong: {error}") from error
        if network.max_prefixlen - network.prefixlen < 2:
            raise IpamError(
                f"the pod range {network} has no room for a pod", hint="give it 4 addresses or more"
            )
        return cls(network, network.network_address + 1, kept)

    def may_give(self, address: IPAddress) -> bool:
        """Say whether a pod may have it."""
        return (
            address in self.network
            and address not in self.reserved
            and address not in (self.gateway, self.network.network_address)
            and (address.version == 6 or address != self.network.broadcast_address)
        )


class Lease(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one attachment has: packed addresses, at most one of each family."""

    attachment: Attachment
    packed: tuple[bytes, ...]

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Its addresses, in the order of the ranges."""
        return tuple(ipaddress.ip_address(one) for one in self.packed)


class State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All leases of one boot, sorted, and the last address given in each family."""

    format: int
    boot_id: str
    last: tuple[bytes, ...] = ()
    leases: tuple[Lease, ...] = ()

    def find(self, attachment: Attachment) -> Lease | None:
        """Return what an attachment has."""
        return next((one for one in self.leases if one.attachment == attachment), None)


def empty(boot_id: str) -> State:
    """Return the state of a machine that has given nothing away."""
    return State(FORMAT, boot_id)


def at_boot(state: State, boot_id: str) -> State:
    """Return the state for this boot: leases of another one are void, the place is kept."""
    return state if state.boot_id == boot_id else State(FORMAT, boot_id, state.last)


def allocate(
    state: State, ranges: tuple[PodRange, ...], attachment: Attachment
) -> tuple[State, Lease]:
    """Return the attachment's lease, with one address of each range, and the state with it.

    What it has already stays, as far as the ranges still give it. Raises CniError: NO_ADDRESS
    when a range is exhausted; nothing is taken of the others then.
    """
    old = state.find(attachment)
    mine = old.addresses if old is not None else ()
    taken = {one for lease in state.leases for one in lease.packed}
    last = {len(one): one for one in state.last}
    packed = []
    for pods in ranges:
        kept = next((one for one in mine if pods.may_give(one)), None)
        if kept is None:
            kept = _next_free(pods, taken, last.get(pods.network.max_prefixlen // 8))
            last[len(kept.packed)] = kept.packed
        packed.append(kept.packed)
    lease = Lease(attachment, tuple(packed))
    if lease == old:
        return state, lease
    others = [one for one in state.leases if one.attachment != attachment]
    return _with(state, [*others, lease], tuple(last[size] for size in sorted(last))), lease


def hold(state: State, lease: Lease) -> State:
    """Return the state with a lease that is known to be in use, unless it has one or others do."""
    taken = {one for other in state.leases for one in other.packed}
    if state.find(lease.attachment) is not None or taken & set(lease.packed):
        return state
    return _with(state, [*state.leases, lease], state.last)


def release(state: State, attachment: Attachment) -> State:
    """Return the state in which the attachment has nothing; it may have had nothing before."""
    kept = [one for one in state.leases if one.attachment != attachment]
    return state if len(kept) == len(state.leases) else _with(state, kept, state.last)


def collect(state: State, network: str, valid: Collection[Attachment]) -> State:
    """Return the state in which only valid attachments of a network have anything."""
    kept = [
        one for one in state.leases if one.attachment.network != network or one.attachment in valid
    ]
    return _with(state, kept, state.last)


def dump(state: State) -> bytes:
    """Return the record of a state."""
    return codec.encode(state)


def load(data: bytes) -> State:
    """Return the state in a record. Raises IpamError for one that cannot be true."""
    try:
        state = codec.decode(data, State, limit=STATE_MAX)
    except FormatError as error:
        raise IpamError(f"the record of pod addresses is damaged: {error}") from error
    if state.format != FORMAT:
        raise IpamError(
            f"the record of pod addresses has format {state.format}, this release reads {FORMAT}"
        )
    packed = [one for lease in state.leases for one in lease.packed]
    keys = [one.attachment for one in state.leases]
    sizes = [[len(one) for one in lease.packed] for lease in state.leases]
    sizes.append([len(one) for one in state.last])
    if len(set(packed)) != len(packed) or keys != sorted(set(keys)):
        raise IpamError("the record of pod addresses gives something twice")
    if any(set(some) - {4, 16} or len(set(some)) != len(some) for some in sizes):
        raise IpamError("the record of pod addresses has what is no address")
    return state


def _with(state: State, leases: list[Lease], last: tuple[bytes, ...]) -> State:
    return State(FORMAT, state.boot_id, last, tuple(sorted(leases, key=lambda one: one.attachment)))


def _next_free(pods: PodRange, taken: Collection[bytes], last: bytes | None) -> IPAddress:
    network = pods.network
    base, size = int(network.network_address), network.num_addresses
    start = 0
    if last is not None and (previous := ipaddress.ip_address(last)) in network:
        start = int(previous) - base
    # Among this many different addresses one is free, or none is at all.
    steps = min(size, len(taken) + len(pods.reserved) + 4)
    for step in range(1, steps + 1):
        # Rather than from an int: small IPv6 numbers would become IPv4 addresses.
        address = network.network_address + (start + step) % size
        if address.packed not in taken and pods.may_give(address):
            return address
    raise CniError(
        Code.NO_ADDRESS,
        f"every address of the pod range {network} is taken",
        hint="fewer pods on this node, or a wider range for each node (NodeBits)",
    )
