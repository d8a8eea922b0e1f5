"""Performs the steps of an attachment, and looks at what is there. Blocking; for worker threads.

Nothing is remembered of containers: every call looks anew. What all pods share (bridge, rules,
forwarding) is put right again whenever `prepare` is called.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from appliance import programs
from appliance.cni import namespaces, rules
from appliance.cni import netlink as nl
from appliance.cni import steps as of
from appliance.cni.journal import Entry
from appliance.cni.netlink_socket import KernelError, Netlink
from appliance.programs import RefusedError
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

# In a container it is read-only there: the manifest for such (docs/image.md) mounts it elsewhere.
_SETTINGS = Path(os.environ.get("SKERRY_PROC_SYS_NET", "/proc/sys/net"))
_NETLINK_NETFILTER = 12  # netlink(7); Python has no name for it
# A pod takes its addresses and routes from us, from nobody on its link.
_OF_A_POD = (
    ("ipv4/conf/{}/accept_redirects", "0"),
    ("ipv6/conf/{}/accept_ra", "0"),
    ("ipv6/conf/{}/accept_redirects", "0"),
    # Nobody else can have its link-local address: the hardware address is ours to give.
    ("ipv6/conf/{}/accept_dad", "0"),
)
_OF_THE_BRIDGE = (
    # Pods reach each other through us, though they are behind one link: a redirect would mislead.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/{}/send_redirects", "0"),
    ("ipv4/conf/{}/accept_redirects", "0"),
    ("ipv6/conf/{}/accept_ra", "0"),
    ("ipv6/conf/{}/accept_redirects", "0"),
    ("ipv6/conf/{}/accept_dad", "0"),
)


class Kernel:
    """The node's own side, and through opened namespaces the containers'."""

    def __init__(self) -> None:
        self._rules: tuple[str, bytes] | None = None
        self._lock = threading.Lock()

    # What all pods share

    def prepare(self, bridge: of.Bridge, table: str) -> None:
        """Have forwarding, the bridge and the table. Raises SkerryError."""
        _forward(ipv6=any(":" in one for one in bridge.gateways))
        with Netlink() as netlink:
            _bridge(netlink, bridge)
        with self._lock:
            if self._rules != (table, _table_handle()):
                _nft(table)
                self._rules = (table, _table_handle())

    def has_link(self, name: str) -> bool:
        """Say whether the node has a link of this name."""
        with Netlink() as netlink:
            return netlink.link(name) is not None

    # Steps

    def perform(self, step: of.Step | of.Undo, namespace: int | None = None) -> None:
        """Perform a step; ``namespace`` is the container's, opened. Raises SkerryError.

        Leases are not for here: Reserve and Release do nothing.
        """
        match step:
            case of.Gate(addresses):
                _nft(rules.hold_text(addresses))
            case of.Ungate(addresses):
                # Without the table nothing is held.
                if _table_handle():
                    _nft(rules.release_text(addresses))
            case of.Addresses() | of.Routes():
                namespaces.inside(_opened(namespace), lambda: _perform_inside(step))
            case of.Reserve() | of.Release():
                pass
            case _:
                with Netlink() as netlink:
                    _perform(netlink, step, namespace)

    # What is there

    @contextmanager
    def namespace(self, path: str, given: int | None) -> Iterator[int]:
        """Yield a checked namespace: the one handed over, else what its path leads to.

        Raises CniError.
        """
        if given is not None:
            namespaces.check_namespace(given, path)
            yield given
            return
        opened = namespaces.open_namespace(path)
        try:
            yield opened
        finally:
            os.close(opened)

    def snapshot_of(self, entry: Entry, namespace: int | None) -> of.Snapshot:
        """Return what there is of one attachment: its links, the bridge and what is inside."""
        names = {of.host_name(entry.attachment)}
        names |= {step.name for step in entry.steps if isinstance(step, of.Bridge)}
        found: dict[tuple[str, str], of.InsideLink] = {}
        paths: frozenset[str] = frozenset()
        if namespace is not None:
            ifname = entry.attachment.ifname
            link = namespaces.inside(namespace, lambda: _look_inside(ifname))
            paths = frozenset({entry.netns})
            found = {(entry.netns, ifname): link} if link is not None else {}
        with Netlink() as netlink:
            links = _host_links(netlink, filter(None, map(netlink.link, sorted(names))))
        return of.Snapshot(paths, links, found, rules=bool(_table_handle()))

    def snapshot(self, entries: Iterable[Entry]) -> of.Snapshot:
        """Return what there is on the node; of containers only whether they are there.

        One counts as there as long as its link leads somewhere: its path may be out of our sight.
        """
        with Netlink() as netlink:
            found = netlink.links()
            links = _host_links(netlink, found)
        alive = {one.name for one in found if one.elsewhere}
        paths = frozenset(
            one.netns
            for one in entries
            if of.host_name(one.attachment) in alive or namespaces.exists(one.netns)
        )
        listed = _listed()
        held = frozenset[str]() if listed is None else rules.held(listed)
        return of.Snapshot(paths, links, {}, held, rules=listed is not None)


# On the node


def _perform(netlink: Netlink, step: of.Step | of.Undo, namespace: int | None) -> None:
    match step:
        case of.Bridge():
            _bridge(netlink, step)
        case of.Veth(host, _, ifname, mtu, mac):
            _remove(netlink, host)
            netlink.do(nl.make_veth(host, _opened(namespace), ifname, mtu, mac))
        case of.Port(host, name, mac, addresses):
            bridge, link = _need(netlink, name), _need(netlink, host)
            # A port is no end of anything: it needs no address, and would only look for one.
            _write(_SETTINGS / "ipv6/conf" / host / "disable_ipv6", "1")
            _port(netlink, link, bridge, mac)
            netlink.do(*(nl.add_neighbour(bridge.index, one, mac) for one in addresses))
            netlink.do(nl.set_link(link.index, f"setting {host} up", up=True))
        case of.Unlearn(name, addresses):
            _unlearn(netlink, name, addresses)
        case of.RemoveVeth(host):
            _remove(netlink, host)
        case _:
            raise AssertionError(step)


def _bridge(netlink: Netlink, step: of.Bridge) -> None:
    link = netlink.link(step.name)
    if link is None:
        try:
            netlink.do(nl.make_bridge(step.name, step.mtu, step.mac))
        except KernelError as error:
            # Two containers at once are the first: one of them makes it.
            if error.code != errno.EEXIST:
                raise
        link = _need(netlink, step.name)
    if link.kind != "bridge":
        raise SkerryError(
            f"there is an interface {step.name} already, of kind {link.kind or 'unknown'}",
            hint=f"remove it: `ip link del {step.name}`",
        )
    _write_settings(_OF_THE_BRIDGE, step.name)
    if any(":" in one for one in step.gateways):
        _write(_SETTINGS / "ipv6/conf" / step.name / "disable_ipv6", "0")
    wanted = []
    if not link.up or link.mac != step.mac or link.mtu != step.mtu:
        what = f"setting the bridge {step.name} up"
        wanted.append(nl.set_link(link.index, what, up=True, mtu=step.mtu, mac=step.mac))
    missing = set(step.gateways) - netlink.addresses(link.index)
    wanted += [nl.add_address(link.index, one) for one in sorted(missing)]
    if wanted:
        netlink.do(*wanted)


def _port(netlink: Netlink, link: nl.Link, bridge: nl.Link, mac: str) -> None:
    what = f"making {link.name} a port of {bridge.name}"
    netlink.do(
        nl.set_link(link.index, what, master=bridge.index),
        nl.set_port(link.index, what, isolated=not _filters_frames()),
        nl.add_behind(link.index, mac),
    )


def _unlearn(netlink: Netlink, name: str, addresses: Iterable[str]) -> None:
    bridge = netlink.link(name)
    if bridge is None:
        return
    for one in addresses:
        try:
            netlink.do(nl.delete_neighbour(bridge.index, one))
        except KernelError as error:
            if not error.absent:
                raise


def _filters_frames() -> bool:
    """Say whether bridged frames pass the packet filter (br_netfilter).

    If they don't, ports are isolated: pods could reach each other past all policies else. If they
    do, ports must not be: a Service's packets to a pod on the same bridge are bridged then.
    """
    try:
        return (_SETTINGS / "bridge/bridge-nf-call-iptables").read_text().strip() != "0"
    except OSError:
        return False


def _remove(netlink: Netlink, name: str) -> None:
    try:
        netlink.do(nl.delete_link(name))
    except KernelError as error:
        if not error.absent:
            raise


def _need(netlink: Netlink, name: str) -> nl.Link:
    link = netlink.link(name)
    if link is None:
        raise KernelError(errno.ENODEV, f"looking for {name}")
    return link


def _host_links(netlink: Netlink, found: Iterable[nl.Link]) -> Mapping[str, of.HostLink]:
    known = list(found)
    names = {one.index: one.name for one in known}
    links = {}
    for one in known:
        bridge = one.kind == "bridge"
        addresses = netlink.addresses(one.index) if bridge else frozenset[str]()
        master = names.get(one.master, "")
        links[one.name] = of.HostLink(one.up, one.mtu, master, one.mac, addresses)
    return links


def _forward(*, ipv6: bool) -> None:
    _write(_SETTINGS / "ipv4/ip_forward", "1")
    everywhere = _SETTINGS / "ipv6/conf/all/forwarding"
    if not ipv6 or _read(everywhere) in ("1", ""):
        return
    # A router ignores routers' advertisements, unless it is told not to: an uplink that has its
    # address from one would lose it.
    for one in (_SETTINGS / "ipv6/conf").glob("*/accept_ra"):
        if one.parent.name not in ("all", "default") and _read(one) == "1":
            _write(one, "2")
    _write(everywhere, "1")


# Inside a container


def _perform_inside(step: of.Addresses | of.Routes) -> None:
    with Netlink() as netlink:
        link = _need(netlink, step.ifname)
        if isinstance(step, of.Addresses):
            _write_settings(_OF_A_POD, step.ifname)
            if any(":" in one for one in step.addresses):
                _write(_SETTINGS / "ipv6/conf" / step.ifname / "disable_ipv6", "0")
            wanted = [nl.add_address(link.index, one) for one in step.addresses]
            netlink.do(*wanted, nl.set_link(link.index, f"setting {step.ifname} up", up=True))
        else:
            netlink.do(*(nl.add_route(link.index, dst, gateway) for dst, gateway in step.routes))


def _look_inside(ifname: str) -> of.InsideLink | None:
    with Netlink() as netlink:
        link = netlink.link(ifname)
        if link is None:
            return None
        addresses, routes = netlink.addresses(link.index), netlink.routes(link.index)
        return of.InsideLink(link.up, link.mtu, link.mac, addresses, routes)


def _opened(namespace: int | None) -> int:
    if namespace is None:
        raise SkerryError("the container's namespace is not open")
    return namespace


# Settings and nft


def _write_settings(settings: Iterable[tuple[str, str]], ifname: str) -> None:
    for path, value in settings:
        _write(_SETTINGS / path.format(ifname), value)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _write(path: Path, value: str) -> None:
    """Set a setting of the kernel, which may not have it: without IPv6, say."""
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SkerryError(
            f"{path} can't be set to {value}: {error.strerror}",
            hint="the cluster agent needs CAP_NET_ADMIN and a writable /proc/sys",
        ) from error


def _table_handle() -> bytes:
    """Return what tells our table from one of the same name; nothing if there is none."""
    with Netlink(_NETLINK_NETFILTER) as netlink:
        try:
            return nl.read_table_handle(netlink.ask(nl.get_table(rules.TABLE))[0])
        except KernelError as error:
            if error.absent:
                return b""
            raise


def _nft(text: str) -> None:
    programs.run("nft", ["-f", "-"], text, doing="laying the rules of pods")


def _listed() -> bytes | None:
    words = ["-j", "list", "table", "inet", rules.TABLE]
    try:
        return programs.run("nft", words, doing="looking at the rules of pods")
    except RefusedError:
        return None  # There is no such table.
