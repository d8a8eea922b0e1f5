"""Kernel WireGuard through netlink. Blocking; runs in the overlay's one worker thread.

pyroute2's synchronous API carries an event loop of its own, so it works beside uvloop as long as
uvloop is only the runner's loop factory (pyroute2#1335).
"""

from __future__ import annotations

import base64
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute, WireGuard
from pyroute2.netlink.exceptions import NetlinkError

from appliance.overlay.endpoint import Endpoint
from appliance.overlay.errors import OverlayError
from appliance.overlay.wireguard import Device, PeerState


@dataclass(slots=True)
class KernelWireGuard:
    """A WireGuard interface of the kernel."""

    interface: str
    mode: str = "kernel"
    _socket: Any = field(default=None, repr=False)

    def ensure(self, device: Device) -> bool:
        """Adopt or make the interface (see `WireGuard.ensure`)."""
        adopted = _make_link(self.interface)
        if self._socket is None:
            self._socket = WireGuard()
        now = self._device()
        changes: dict[str, object] = {}
        if now.get("public_key") != device.public_key:
            changes["private_key"] = _text(device.private_key)
        if now.get("listen_port") != device.listen_port:
            changes["listen_port"] = device.listen_port
        if now.get("fwmark") != device.fwmark:
            changes["fwmark"] = device.fwmark
        if changes:
            self._set(f"interface {self.interface}", **changes)
        return adopted

    def set_peer(
        self, key: bytes, endpoint: Endpoint | None, allowed: tuple[str, ...], *, replace: bool
    ) -> None:
        """See `WireGuard.set_peer`."""
        peer: dict[str, object] = {
            "public_key": _text(key),
            "replace_allowed_ips": replace,
            "allowed_ips": list(allowed),
        }
        if endpoint is not None:
            peer |= {"endpoint_addr": endpoint.host, "endpoint_port": endpoint.port}
        self._set("a peer", peer=peer)

    def remove_peer(self, key: bytes) -> None:
        """See `WireGuard.remove_peer`."""
        self._set("a peer", peer={"public_key": _text(key), "remove": True})

    def peers(self) -> Mapping[bytes, PeerState]:
        """See `WireGuard.peers`."""
        return merge_peers(self._dump())

    def close(self) -> None:
        """See `WireGuard.close`."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _dump(self) -> tuple[Any, ...]:
        try:
            return tuple(self._socket.info(self.interface))
        except NetlinkError as error:
            raise OverlayError(
                f"interface {self.interface} can't be read: {error}",
                hint="the supervisor makes it again when it restarts",
            ) from error

    def _device(self) -> dict[str, object]:
        for message in self._dump():
            public = message.get_attr("WGDEVICE_A_PUBLIC_KEY")
            return {
                "public_key": _key(public) if public else None,
                "listen_port": message.get_attr("WGDEVICE_A_LISTEN_PORT"),
                "fwmark": message.get_attr("WGDEVICE_A_FWMARK"),
            }
        return {}

    def _set(self, what: str, **values: Any) -> None:  # noqa: ANN401 - pyroute2 is untyped
        try:
            self._socket.set(self.interface, **values)
        except NetlinkError as error:
            in_use = error.code == errno.EADDRINUSE
            raise OverlayError(
                f"WireGuard refused to set {what}: {error}",
                hint="another program has the UDP port; `ss -ulpn` names it"
                if in_use
                else "`journalctl -k` may say more",
            ) from error


def _make_link(interface: str) -> bool:
    with IPRoute() as netlink:
        found = netlink.link_lookup(ifname=interface)
        if found:
            (link,) = netlink.link("get", index=found[0])
            kind = link.get(("linkinfo", "kind"))
            if kind == "wireguard":
                return True
            raise OverlayError(
                f"there is an interface {interface} already, of kind {kind or 'unknown'}",
                hint=f"remove it (`ip link del {interface}`), or choose --wireguard userspace",
            )
        try:
            netlink.link("add", ifname=interface, kind="wireguard")
        except NetlinkError as error:
            missing = error.code in {errno.EOPNOTSUPP, errno.ENODEV, errno.ENOENT}
            raise OverlayError(
                f"the kernel can't make the WireGuard interface {interface}: {error}",
                hint="this kernel has no WireGuard: `modprobe wireguard`, or --wireguard userspace"
                if missing
                else "the supervisor needs CAP_NET_ADMIN, as skerry.service gives it",
            ) from error
    return False


def merge_peers(messages: Iterable[Any]) -> dict[bytes, PeerState]:
    """Return the peers of a dump.

    A long peer table comes in several messages, and one peer's allowed addresses may be split over
    two of them; each piece repeats the public key (pyroute2#1212, wireguard(4) uapi header).
    """
    peers: dict[bytes, PeerState] = {}
    for message in messages:
        for peer in message.get_attr("WGDEVICE_A_PEERS") or ():
            key = _key(peer.get_attr("WGPEER_A_PUBLIC_KEY"))
            allowed = frozenset(
                one["addr"] for one in peer.get_attr("WGPEER_A_ALLOWEDIPS") or () if "addr" in one
            )
            before = peers.get(key)
            if before is not None:
                peers[key] = PeerState(
                    before.endpoint,
                    before.handshake,
                    before.received,
                    before.sent,
                    before.allowed | allowed,
                )
                continue
            endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
            peers[key] = PeerState(
                Endpoint(endpoint["addr"], endpoint["port"]) if endpoint else None,
                _handshake(peer.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")),
                peer.get_attr("WGPEER_A_RX_BYTES") or 0,
                peer.get_attr("WGPEER_A_TX_BYTES") or 0,
                allowed,
            )
    return peers


def _handshake(value: Mapping[str, int] | None) -> float | None:
    if not value or not value["tv_sec"]:
        return None
    return value["tv_sec"] + value["tv_nsec"] / 1e9


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _key(value: Any) -> bytes:  # noqa: ANN401 - pyroute2 gives text, bytes or the attribute
    if isinstance(value, Mapping):
        value = value.get("value")
    return base64.b64decode(value)
