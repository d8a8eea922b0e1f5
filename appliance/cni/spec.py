"""CNI requests as the shim hands them over, checked: CNI 1.1.0 and back to 0.3.1.

The shim sends one JSON object: ``env``, the CNI_* variables it was started with, and ``stdin``, the
text it read, unchanged. It judges nothing, so every refusal and its code is made here. Fields that
we do not know are ignored, as chained and later plugins have theirs in the same configuration;
one that asks for something and would be silently denied it (``ipam``) is refused.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TypeVar

import msgspec

from appliance.cni.errors import NEWEST, CniError, Code
from appliance.cni.results import Result, read_result

SUPPORTED = ("0.3.1", "0.4.0", "1.0.0", NEWEST)
# Attachments of a full node take about 100 bytes each in a GC.
BODY_MAX = 1 << 20
IFNAME_MAX = 15
_NETNS_MAX = 4095
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z", re.ASCII)
# The specification sets no limit; runtimes use 64 hexadecimal digits.
_NAME_MAX = 253
_SHOWN = 80
_LOOKS_LIKE_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}\Z", re.ASCII)
_NULL = msgspec.Raw(b"null")
_NOTHING = frozenset({b"null", b"{}"})
T = TypeVar("T")


class Command(Enum):
    """The operations; the value is CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


_SINCE = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}
_OF_A_CONTAINER = frozenset({Command.ADD, Command.DEL, Command.CHECK})


class Attachment(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One interface of one container in one network: the key of all that we keep."""

    network: str
    container: str
    ifname: str


class ValidAttachment(msgspec.Struct, frozen=True):
    """An attachment that a GC is told to keep."""

    container: str = msgspec.field(name="containerID")
    ifname: str


class PortMapping(msgspec.Struct, frozen=True, rename="camel"):
    """A port of the node that leads to one of the container (convention ``portMappings``)."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = msgspec.field(name="hostIP", default="")


class Bandwidth(msgspec.Struct, frozen=True, rename="camel"):
    """Limits in bits per second, bursts in bits (convention ``bandwidth``); 0 is none."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class RuntimeConfig(msgspec.Struct, frozen=True, rename="camel"):
    """What the runtime says of this one container."""

    port_mappings: tuple[PortMapping, ...] | None = None
    bandwidth: Bandwidth | None = None


class _Config(msgspec.Struct, frozen=True, rename="camel"):
    cni_version: str | None = None
    name: str | None = None
    type: str | None = None
    ipam: msgspec.Raw = _NULL
    # Read apart, and not at all for a DEL, which must come through whatever else is spoilt.
    runtime_config: msgspec.Raw = _NULL
    prev_result: msgspec.Raw = _NULL
    valid_attachments: tuple[ValidAttachment, ...] | None = msgspec.field(
        name="cni.dev/valid-attachments", default=None
    )
    # What the first runtimes with GC call it.
    attachments: tuple[ValidAttachment, ...] | None = msgspec.field(
        name="cni.dev/attachments", default=None
    )


class _HandedOver(msgspec.Struct, frozen=True):
    env: dict[str, str]
    stdin: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is well-formed.

    ADD and CHECK have an attachment and a netns, CHECK also ``previous``; DEL has an attachment,
    and ``netns`` is "" where the namespace is gone. GC has ``valid`` within ``network``, None if
    the runtime does not say: a forgotten key, taken for an empty list, would cut every pod off.
    VERSION and STATUS have only what the configuration says. ``args`` are the pairs of CNI_ARGS.
    """

    command: Command
    cni_version: str = NEWEST
    network: str = ""
    attachment: Attachment | None = None
    netns: str = ""
    args: tuple[tuple[str, str], ...] = ()
    ports: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    previous: Result | None = None
    valid: frozenset[Attachment] | None = None


def read_request(body: bytes) -> Request:
    """Return the request that the shim sent. Raises CniError, with the version to answer in."""
    handed = _handed_over(body)
    word = handed.env.get("CNI_COMMAND", "")
    try:
        command = Command(word)
    except ValueError:
        raise CniError(
            Code.ENVIRONMENT,
            f"CNI_COMMAND is {_show(word)}",
            hint=f"it is one of {', '.join(one.value for one in Command)}",
        ) from None
    if command is Command.VERSION:
        return Request(command=command, cni_version=_version_to_answer_in(handed.stdin))
    config = _decode(handed.stdin.encode(), _Config, "the network configuration")
    version = _check_version(config.cni_version, command)
    try:
        return _build(command, version, config, handed.env)
    except CniError as error:
        error.cni_version = version
        raise


def check_container_id(text: str) -> str:
    """Return a container id as it is. Raises CniError."""
    if len(text) > _NAME_MAX or not _NAME.match(text):
        raise CniError(
            Code.ENVIRONMENT,
            f"CNI_CONTAINERID is {_show(text)}",
            hint=f"a letter or digit, then letters, digits, _ . - ; {_NAME_MAX} at most",
        )
    return text


def check_ifname(text: str) -> str:
    """Return the name of an interface as it is. Raises CniError.

    What Linux takes: at most 15 bytes, neither . nor .., without / : and white space.
    """
    wrong = (
        not 0 < len(text.encode()) <= IFNAME_MAX
        or text in {".", ".."}
        or any(one in "/:%" or one.isspace() or not one.isprintable() for one in text)
    )
    if wrong:
        raise CniError(
            Code.ENVIRONMENT,
            f"CNI_IFNAME is {_show(text)}",
            hint=f"1 to {IFNAME_MAX} bytes, not . or .., without / : % and white space",
        )
    return text


def check_netns(text: str) -> str:
    """Return the path of a namespace as it is. Raises CniError.

    Only its form: that it is a network namespace, and not the node's own, is for who opens it.
    """
    parts = text.split("/")
    wrong = (
        not text.startswith("/")
        or len(text.encode()) > _NETNS_MAX
        or not text.isprintable()
        or ".." in parts
        or not parts[-1]
    )
    if wrong:
        raise CniError(
            Code.ENVIRONMENT,
            f"CNI_NETNS is {_show(text)}",
            hint="the absolute path of a network namespace, without .. in it",
        )
    return text


def _build(command: Command, version: str, config: _Config, env: dict[str, str]) -> Request:
    network = config.name or ""
    if len(network) > _NAME_MAX or not _NAME.match(network):
        raise CniError(
            Code.CONFIG,
            f"the network's name is {_show(network)}",
            hint='"name": a letter or digit, then letters, digits, _ . -',
        )
    request = Request(command=command, cni_version=version, network=network)
    if command not in {Command.DEL, Command.GC}:
        _refuse_ipam(bytes(config.ipam))
    if command is Command.GC:
        return msgspec.structs.replace(request, valid=_valid(network, config))
    if command not in _OF_A_CONTAINER:
        return request
    request = msgspec.structs.replace(
        request,
        attachment=Attachment(
            network,
            check_container_id(env.get("CNI_CONTAINERID", "")),
            check_ifname(env.get("CNI_IFNAME", "")),
        ),
        netns=_netns(command, env.get("CNI_NETNS", "")),
        previous=_previous(command, config.prev_result),
    )
    if command is Command.DEL:
        return request
    runtime = RuntimeConfig()
    if bytes(config.runtime_config).strip() not in _NOTHING:
        runtime = _decode(bytes(config.runtime_config), RuntimeConfig, "runtimeConfig")
    return msgspec.structs.replace(
        request,
        args=_read_args(env.get("CNI_ARGS", "")),
        ports=_check_ports(runtime.port_mappings or ()),
        bandwidth=_check_bandwidth(runtime.bandwidth),
    )


def _refuse_ipam(raw: bytes) -> None:
    if raw.strip() not in _NOTHING:
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f"ipam is {_show(raw.decode(errors='replace'))}",
            hint="leave it out: the addresses are those of the node's pod range",
        )


def _netns(command: Command, text: str) -> str:
    # A runtime whose namespace is gone says so with an empty path.
    return "" if command is Command.DEL and not text else check_netns(text)


def _previous(command: Command, raw: msgspec.Raw) -> Result | None:
    given = bytes(raw)
    if given.strip() == b"null":
        if command is Command.CHECK:
            raise CniError(Code.CONFIG, "a CHECK without prevResult has nothing to compare with")
        return None
    try:
        return read_result(given)
    except CniError:
        if command is Command.DEL:
            return None
        raise


def _valid(network: str, config: _Config) -> frozenset[Attachment] | None:
    given = config.valid_attachments
    if given is None:
        given = config.attachments
    if given is None:
        return None
    return frozenset(Attachment(network, one.container, one.ifname) for one in given)


def _check_ports(ports: tuple[PortMapping, ...]) -> tuple[PortMapping, ...]:
    for one in ports:
        numbers = 0 <= one.host_port <= 65_535 and 0 < one.container_port <= 65_535
        if not numbers or one.protocol.lower() not in {"tcp", "udp", "sctp"}:
            raise CniError(
                Code.CONFIG,
                f"the port mapping {one.host_port} to {one.container_port}/"
                f"{_show(one.protocol)} is none",
                hint="ports up to 65535, protocol tcp, udp or sctp",
            )
    # Host port 0 is how runtimes list a container's port that nothing leads to.
    return tuple(one for one in ports if one.host_port)


def _check_bandwidth(limits: Bandwidth | None) -> Bandwidth | None:
    if limits is None:
        return None
    numbers = msgspec.structs.astuple(limits)
    if min(numbers) < 0 or max(numbers) >= 1 << 63:
        raise CniError(Code.CONFIG, f"a bandwidth of {numbers} bits", hint="use 0 or more")
    for rate, burst in (numbers[:2], numbers[2:]):
        if bool(rate) != bool(burst):
            raise CniError(
                Code.CONFIG,
                f"a bandwidth of {rate} bits per second with a burst of {burst}",
                hint="give both, or neither",
            )
    return limits


def _read_args(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for part in text.split(";") if text else ():
        key, equals, value = part.partition("=")
        if not key or not equals or not part.isprintable():
            raise CniError(
                Code.ENVIRONMENT, f"CNI_ARGS has {_show(part)}", hint="pairs KEY=VALUE, between ;"
            )
        found.append((key, value))
    return tuple(found)


def _check_version(text: str | None, command: Command) -> str:
    # Before 0.3.1 versions could be left out; those we do not speak.
    asked = text or "0.1.0"
    if asked not in SUPPORTED:
        raise CniError(
            Code.VERSION,
            f"cniVersion is {_show(asked)}",
            hint=f"supported are {', '.join(SUPPORTED)}",
            cni_version=NEWEST,
        )
    since = _SINCE.get(command, SUPPORTED[0])
    if SUPPORTED.index(asked) < SUPPORTED.index(since):
        raise CniError(
            Code.VERSION,
            f"cniVersion {asked} has no {command.value}",
            hint=f"it came with {since}",
            cni_version=asked,
        )
    return asked


def _version_to_answer_in(stdin: str) -> str:
    """Return what a VERSION answers in: the asked version where it is one, else our newest."""
    try:
        asked = msgspec.json.decode(stdin, type=_Config).cni_version or ""
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return NEWEST
    return asked if _LOOKS_LIKE_VERSION.match(asked) else NEWEST


def _handed_over(body: bytes) -> _HandedOver:
    if len(body) > BODY_MAX:
        raise CniError(Code.IO, f"the request has {len(body)} bytes, {BODY_MAX} at most")
    return _decode(body, _HandedOver, "what the shim handed over", Code.DECODE)


def _decode(data: bytes, kind: type[T], what: str, misfit: Code = Code.CONFIG) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise CniError(misfit, f"{what} does not fit: {error}") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CniError(Code.DECODE, f"{what} is no JSON: {error}") from error


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
