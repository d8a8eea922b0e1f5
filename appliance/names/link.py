"""Tells systemd-resolved whom to ask about members: two ends of one file.

The supervisor writes which ranges are its network's; a root unit (skerry-names.service) has
systemd-resolved ask about them on the overlay's link. Root trusts the file for nothing but private
ranges: a supervisor gone bad could not draw anybody else's names to itself.
"""

from __future__ import annotations

import ipaddress
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.config import RESOLVER_PORT
from appliance.names.ranges import DOMAIN, HOST, NamesError, Ranges
from provisioning.files import read_small, write_all

FILE_NAME = "names-ranges"
_LIMIT = 256
_ATTEMPTS = 10
_WAIT_SECONDS = 0.5
_TIMEOUT_SECONDS = 30
# Ranges that nobody owns: RFC 1918, RFC 6598, and RFC 4193 with the size of one network's part.
_PRIVATE = tuple(
    ipaddress.IPv4Network(one)
    for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
)
_LOCAL = ipaddress.IPv6Network("fd00::/8")
_LEAST_LOCAL = 48


def publish_ranges(run_dir: Path, ranges: Ranges) -> None:
    """Say for which addresses this node's resolver has names. Raises OSError."""
    write_all(run_dir, {FILE_NAME: f"{ranges.ipv4}\n{ranges.ipv6}\n".encode()}, mode=0o644)


def read_ranges(run_dir: Path) -> Ranges:
    """Return what :func:`publish_ranges` wrote. Raises NamesError, FileError, OSError."""
    path = run_dir / FILE_NAME
    lines = read_small(path, _LIMIT).decode("ascii", errors="replace").splitlines()
    try:
        four, six = lines
        ranges = Ranges(ipaddress.IPv4Network(four), ipaddress.IPv6Network(six))
    except ValueError as error:
        raise NamesError(
            f"{path} does not hold one IPv4 and one IPv6 range: {error}",
            hint="restart skerry.service: the supervisor writes it",
        ) from error
    if not ranges.ipv6.subnet_of(_LOCAL) or ranges.ipv6.prefixlen < _LEAST_LOCAL:
        raise NamesError(
            f"{path}: {ranges.ipv6} can't be a network's own range",
            hint="restart skerry.service: the supervisor writes it",
        )
    return ranges


def resolvectl_calls(link: str, ranges: Ranges) -> tuple[tuple[str, ...], ...]:
    """Return the commands that make systemd-resolved ask us, and only about what is ours.

    A host range of public addresses is somebody else's to name: it is left out.
    """
    zones = [DOMAIN, *ranges.reverse_zones()]
    if not any(ranges.ipv4.subnet_of(one) for one in _PRIVATE):
        zones = [one for one in zones if not one.endswith("in-addr.arpa")]
    routes = (f"~{one}" for one in zones)
    return (
        ("resolvectl", "default-route", link, "no"),
        ("resolvectl", "dnssec", link, "no"),  # nothing above us could sign for us
        ("resolvectl", "dnsovertls", link, "no"),
        ("resolvectl", "domain", link, *routes),
        ("resolvectl", "dns", link, f"{HOST}:{RESOLVER_PORT}"),
    )


def configure(link: str, run_dir: Path) -> None:
    """Make systemd-resolved ask us about members. The end with root.

    The link has just appeared, so systemd-resolved may not know of it for a moment. Raises
    NamesError when it does not take the settings.
    """
    for call in resolvectl_calls(link, read_ranges(run_dir)):
        _insist(call)


def _insist(call: Sequence[str]) -> None:
    said = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_WAIT_SECONDS)
        try:
            result = subprocess.run(call, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        if result.returncode == 0:
            return
        said = result.stderr.strip()
    raise NamesError(
        f"systemd-resolved did not take `{' '.join(call)[:200]}`: {said[:200]}",
        hint="`systemctl status systemd-resolved` says more; then restart skerry-names.service",
    )
