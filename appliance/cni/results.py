"""What a CNI call answers: results, versions and errors, in the asked version's own form.

Differences: up to 0.4.0 an address says its family (``version``); the MTU of an interface and the
MTU, priority and table of a route came with 1.1.0.
"""

from __future__ import annotations

import ipaddress

import msgspec

from appliance.cni.errors import NEWEST, CniError, Code

RESULT_MAX = 1 << 18
_WITH_FAMILY = frozenset({"0.3.1", "0.4.0"})


class Interface(msgspec.Struct, frozen=True, omit_defaults=True):
    """A link; ``sandbox`` is the path of its namespace, "" for one of the node."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""


class Address(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address with its prefix; ``interface`` is an index into the result's."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """A route inside the container; without ``gw`` it is on the link."""

    dst: str
    gw: str = ""
    mtu: int = 0
    priority: int = 0
    table: int | None = None


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the runtime may put into a resolv.conf."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True):
    """What an ADD made; also what a runtime hands back in ``prevResult``."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


class _Given(msgspec.Struct, frozen=True):
    interfaces: tuple[Interface, ...] | None = None
    ips: tuple[Address, ...] | None = None
    routes: tuple[Route, ...] | None = None
    dns: Dns | None = None


def read_result(data: bytes) -> Result:
    """Return a ``prevResult`` of any version, strictly. Raises CniError.

    Addresses, prefixes and indexes mean something. What we do not know is left out.
    """
    if len(data) > RESULT_MAX:
        raise CniError(Code.CONFIG, f"prevResult has {len(data)} bytes, {RESULT_MAX} at most")
    try:
        given = msgspec.json.decode(data, type=_Given)
        result = Result(
            given.interfaces or (), given.ips or (), given.routes or (), given.dns or Dns()
        )
        for ip in result.ips:
            ipaddress.ip_interface(ip.address)
            if ip.gateway:
                ipaddress.ip_address(ip.gateway)
            if ip.interface is not None and not 0 <= ip.interface < len(result.interfaces):
                raise CniError(Code.CONFIG, f"prevResult has no interface {ip.interface}")
        for route in result.routes:
            ipaddress.ip_network(route.dst, strict=False)
            if route.gw:
                ipaddress.ip_address(route.gw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CniError(Code.CONFIG, f"prevResult does not fit: {error}") from error
    return result


def render_result(result: Result, cni_version: str) -> bytes:
    """Return the JSON of a result in a supported version."""
    family, newest = cni_version in _WITH_FAMILY, cni_version == NEWEST
    interfaces = result.interfaces
    routes = result.routes
    if not newest:
        interfaces = tuple(Interface(one.name, one.mac, 0, one.sandbox) for one in interfaces)
        routes = tuple(Route(one.dst, one.gw) for one in routes)
    shown: dict[str, object] = {
        "cniVersion": cni_version,
        "interfaces": interfaces,
        "ips": [_address(one, family=family) for one in result.ips],
    }
    if routes:
        shown["routes"] = routes
    if result.dns != Dns():
        shown["dns"] = result.dns
    return msgspec.json.encode(shown)


def render_version(cni_version: str, supported: tuple[str, ...]) -> bytes:
    """Return the JSON that answers VERSION."""
    return msgspec.json.encode({"cniVersion": cni_version, "supportedVersions": supported})


def render_error(error: CniError) -> bytes:
    """Return the JSON of an error; the way out is among its details."""
    shown: dict[str, object] = {
        "cniVersion": error.cni_version,
        "code": int(error.code),
        "msg": _sayable(str(error)),
    }
    details = "; ".join(part for part in (error.details, error.hint) if part)
    if details:
        shown["details"] = _sayable(details)
    return msgspec.json.encode(shown)


def _address(given: Address, *, family: bool) -> object:
    if not family:
        return given
    version = str(ipaddress.ip_interface(given.address).version)
    return {"version": version} | msgspec.to_builtins(given)


def _sayable(text: str) -> str:
    """Return text that JSON can carry: half a surrogate pair is none."""
    return text.encode("utf-8", "backslashreplace").decode()
