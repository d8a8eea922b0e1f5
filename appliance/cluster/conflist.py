"""The CNI configuration of a node: the text of ``/etc/cni/net.d/10-skerry.conflist``.

A network configuration list (CNI specification 1.1.0, section 1): our plugin, then ``portmap`` and
``bandwidth``, which act on what the runtime passes for their capabilities. One network has one
text, so a file can be compared as bytes: anything else there is not ours, or of another release.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass

import msgspec

from appliance.cluster.errors import ConflistError
from appliance.cluster.ranges import Network, NodeRange

PATH = "/etc/cni/net.d/10-skerry.conflist"
NAME = "skerry"
PLUGIN = "skerry-cni"
BRIDGE = "skerry-pods"
TEXT_MAX = 16 * 1024
# The least that IPv6 works with (RFC 8200, section 5), what every IPv4 host takes (RFC 791, section
# 3.1), and the most an interface can have. In Flannel mode pods are IPv4 only, with 1230 bytes.
MTU_MIN_IPV6, MTU_MIN_IPV4, MTU_MAX = 1280, 576, 65_535
EVERYWHERE = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))
NETWORKS_MAX = 64
# A runtime whose library knows 1.1.0 takes the highest of the list; an older one reads the first
# field only, and would refuse results of a version that it does not know.
_VERSION, _VERSIONS = "1.0.0", ("1.0.0", "1.1.0")
_HINT = "it is written anew when the node gets its pod range; delete it if it is none of Skerry's"
# The kernel allows more; this is safe in any file name and rule.
_BRIDGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNetwork:
    """What our plugin has to know; anything that cannot be raises ConflistError.

    ``ranges``: the node's, IPv4 first, IPv6 if the node has it; the gateway is the first address of
    each. ``routes`` lead through it. With ``masquerade`` a pod's packets get the node's address,
    but for destinations in ``direct``: what the overlay carries.
    """

    ranges: tuple[Network, ...]
    mtu: int
    routes: tuple[Network, ...] = EVERYWHERE
    masquerade: bool = True
    direct: tuple[Network, ...] = ()
    bridge: str = BRIDGE

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        families = [one.version for one in self.ranges]
        if families not in ([4], [4, 6]):
            raise ConflistError(
                f"{_listed(self.ranges)} are not a node's pod ranges: one of IPv4 and at most one "
                "of IPv6"
            )
        if tight := [one for one in self.ranges if one.num_addresses < 4]:
            raise ConflistError(f"the pod range {tight[0]} has no room for a pod")
        least = MTU_MIN_IPV6 if 6 in families else MTU_MIN_IPV4
        if not least <= self.mtu <= MTU_MAX:
            raise ConflistError(f"the MTU {self.mtu} is not within {least} to {MTU_MAX}")
        if not _BRIDGE_NAME.fullmatch(self.bridge):
            raise ConflistError(f"{self.bridge[:40]!r} can't be the name of a bridge")
        for what, networks in (("routes", self.routes), ("direct", self.direct)):
            if len(networks) > NETWORKS_MAX or len(set(networks)) != len(networks):
                raise ConflistError(
                    f"{what} has {len(networks)} networks: at most {NETWORKS_MAX}, each once"
                )

    @property
    def gateways(self) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
        """Return the bridge's address in each range."""
        return tuple(one[1] for one in self.ranges)


def pod_network(
    pods: NodeRange, mtu: int, direct: tuple[Network, ...], *, ipv6: bool = True
) -> PodNetwork:
    """Return the usual network of a node; without ``ipv6`` if its kernel has none."""
    return PodNetwork(
        ranges=(pods.ipv4, pods.ipv6) if ipv6 else (pods.ipv4,),
        mtu=mtu,
        routes=tuple(one for one in EVERYWHERE if ipv6 or one.version == 4),
        direct=tuple(one for one in direct if ipv6 or one.version == 4),
    )


def conflist_text(network: PodNetwork) -> str:
    """Return the text of the file."""
    ours = {
        "type": PLUGIN,
        "bridge": network.bridge,
        "mtu": network.mtu,
        "ranges": [
            {"subnet": str(one), "gateway": str(gateway)}
            for one, gateway in zip(network.ranges, network.gateways, strict=True)
        ],
        "routes": [{"dst": str(one)} for one in network.routes],
        "ipMasq": network.masquerade,
        "direct": [str(one) for one in network.direct],
    }
    chain = [
        ours,
        {
            "type": "portmap",
            # Left out, it takes iptables wherever that is found.
            "backend": "nftables",
            "capabilities": {"portMappings": True},
            "snat": True,
        },
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]
    whole = {"cniVersion": _VERSION, "cniVersions": _VERSIONS, "name": NAME, "plugins": chain}
    return json.dumps(whole, indent=2) + "\n"


# Reading


class _Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    subnet: str
    gateway: str


class _Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dst: str


class _Ours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    bridge: str
    mtu: int
    ranges: tuple[_Range, ...]
    routes: tuple[_Route, ...]
    ipMasq: bool  # noqa: N815 - the specification's name
    direct: tuple[str, ...]


class _Whole(msgspec.Struct, frozen=True):
    plugins: tuple[msgspec.Raw, ...]


def read_conflist(data: bytes) -> PodNetwork:
    """Return the network whose `conflist_text` this is, to the byte. Raises ConflistError."""
    if len(data) > TEXT_MAX:
        raise ConflistError(f"{PATH} has {len(data)} bytes, {TEXT_MAX} at most", hint=_HINT)
    try:
        chain = msgspec.json.decode(data, type=_Whole).plugins
        ours = msgspec.json.decode(chain[0] if chain else b"", type=_Ours)
        network = PodNetwork(
            ranges=tuple(ipaddress.ip_network(one.subnet) for one in ours.ranges),
            mtu=ours.mtu,
            routes=tuple(ipaddress.ip_network(one.dst) for one in ours.routes),
            masquerade=ours.ipMasq,
            direct=tuple(ipaddress.ip_network(one) for one in ours.direct),
            bridge=ours.bridge,
        )
    # Both of the first are ValueErrors, and so is what ipaddress raises.
    except (ValueError, RecursionError) as error:
        raise ConflistError(f"{PATH} can't be read: {str(error)[:200]}", hint=_HINT) from error
    if conflist_text(network).encode() != data:
        raise ConflistError(f"{PATH} is not as this release of Skerry writes it", hint=_HINT)
    return network


def _listed(networks: tuple[Network, ...]) -> str:
    return ", ".join(map(str, networks[:4])) or "no ranges"
