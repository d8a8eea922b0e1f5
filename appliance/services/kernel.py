"""The edge to the kernel: nft, the route of the services' range, connections to forget. Root."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from appliance import programs
from appliance.services import rules
from appliance.services.errors import ServiceError
from appliance.services.offers import SERVICE_RANGE
from appliance.services.plan import Way

log = logging.getLogger(__name__)

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def apply(ways: Sequence[Way], interface: str, own: str, *, guarded: bool) -> None:
    """Make the kernel do exactly this. Raises ProgramError; then the rules are as they were."""
    present = _present()
    if ways or guarded or present:
        _nft(rules.lay(ways, present))
        _nft(rules.switch(ways, interface, own, guarded=guarded))


def tidy(ways: Sequence[Way]) -> None:
    """Take away chains that these ways do not need, a while after :func:`apply`: see `rules`."""
    if text := rules.clear(ways, _present()):
        _nft(text)


def _present() -> frozenset[str]:
    words = ["-j", "list", "chains", "inet"]
    return rules.chains_in(programs.run("nft", words, doing="looking at the rules of services"))


def _nft(text: str) -> None:
    programs.run("nft", ["-f", "-"], text, doing="laying the rules of services")


def route() -> None:
    """Make the services' range local to this node, so that packets get as far as our rules."""
    words = ["route", "replace", "local", str(SERVICE_RANGE), "dev", "lo"]
    programs.run("ip", words, doing="routing the range of services")


def is_ours(marker: Path, *, needed: bool) -> bool:
    """Say whether the node forwards packets, or is about to if ``needed``, for our sake alone.

    ``marker`` remembers that until the next boot. Raises ServiceError.
    """
    try:
        if needed and not _forwards():
            marker.touch()
        return marker.exists()
    except OSError as error:
        raise ServiceError(f"{marker} cannot be written: {error}", hint="is this root?") from error


def forward() -> None:
    """Let the node forward packets; what guards it has to be there before. Raises ServiceError."""
    try:
        if not _forwards():
            _FORWARD.write_text("1")
    except OSError as error:
        raise ServiceError(f"{_FORWARD} cannot be set: {error}", hint="is this root?") from error


def _forwards() -> bool:
    return _FORWARD.read_text().strip() == "1"


def forget(gone: Collection[tuple[str, str, int]]) -> int:
    """Forget connections to services that were led to these (address, protocol, port).

    UDP would go on to them as long as somebody sends. Returns how many.
    """
    if not gone:
        return 0
    try:
        return _forget(frozenset(gone))
    except Exception as error:  # noqa: BLE001 - netlink, its library, or no such kernel
        log.info("connections can't be forgotten: %s", error)
        return 0


def _forget(gone: frozenset[tuple[str, str, int]]) -> int:
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

    numbers = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
    forgotten = 0
    with NFCTSocket(nfgen_family=socket.AF_INET) as tracker:
        for entry in tuple(tracker.dump()):
            tuple_ = entry.get_attr("CTA_TUPLE_ORIG")
            original = NFCTAttrTuple.from_netlink(socket.AF_INET, tuple_)
            reply = NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_REPLY"))
            led = (str(reply.saddr), numbers.get(reply.proto, ""), int(reply.sport or 0))
            # Only what was translated: who asks a backend by its own address is none of ours.
            if led in gone and original.daddr != reply.saddr:
                tracker.entry("del", tuple_orig=original)
                forgotten += 1
    return forgotten
