"""The engine's ``config.yaml`` (k3s's keys) as a pure function of what is known.

Nothing in it changes by itself: whatever differs between two texts is worth a restart.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.kubernetes.facts import Cluster
from appliance.kubernetes.part import Kind, Part
from appliance.kubernetes.places import API_PORT, Places

Value = bool | str | tuple[str, ...]

NODE_ID_LABEL = "skerry/node-id"
PROVIDER = "skerry://"
PODS_MAX = 110
# What the official engine brings along and we bring ourselves, or not at all.
_DISABLED = ("coredns", "local-storage", "metrics-server", "servicelb", "traefik")
_HEADER = "# Written by skerry-cluster.service; changes are lost. It holds secrets.\n"
# SD cards: few and small logs, images are collected before the disk is full.
_KUBELET = (
    "container-log-max-files=2",
    "container-log-max-size=4Mi",
    "image-gc-high-threshold=75",
    "image-gc-low-threshold=60",
)


@dataclass(frozen=True, slots=True)
class Keys:
    """The tokens of this node's engine; never in a message.

    ``join``: what it shows to a server (full form, with the hash of the authority). ``agents``:
    on a server, the secret by which agents join.
    """

    join: str | None = field(default=None, repr=False)
    agents: str | None = field(default=None, repr=False)


def engine_config(
    cluster: Cluster, part: Part, keys: Keys, node_ips: Sequence[str], places: Places
) -> str:
    """Return the text of the file for a server or an agent."""
    settings: dict[str, Value] = {
        "node-name": cluster.document.name,
        "node-ip": ",".join(node_ips),
        "node-label": (f"{NODE_ID_LABEL}={cluster.document.node_id}",),
        "data-dir": str(places.data_dir),
        "container-runtime-endpoint": places.containerd,
        "kubelet-arg": _kubelet(cluster),
        "kube-proxy-arg": ("proxy-mode=nftables",),
    }
    if keys.join is not None:
        settings["token"] = keys.join
    if part.join is not None:
        settings["server"] = f"https://{bracketed(part.join)}:{API_PORT}"
    if part.kind is Kind.SERVER:
        settings |= _server(cluster, part, keys, node_ips, places)
    return _HEADER + "".join(_line(name, value) for name, value in sorted(settings.items()))


def joined_in(text: str) -> str | None:
    """Return the address of the server that a file of `engine_config` joins through."""
    start = 'server: "https://'
    for line in text.splitlines():
        if line.startswith(start):
            host = line.removeprefix(start).rpartition(":")[0]
            return host.removeprefix("[").removesuffix("]") or None
    return None


def bracketed(address: str) -> str:
    """Return an address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


def _kubelet(cluster: Cluster) -> tuple[str, ...]:
    own = cluster.range
    most = PODS_MAX if own is None else min(PODS_MAX, own.pods)
    given = (f"provider-id={PROVIDER}{cluster.document.node_id}", f"max-pods={most}")
    return (*_KUBELET, *given)


def _server(
    cluster: Cluster, part: Part, keys: Keys, node_ips: Sequence[str], places: Places
) -> dict[str, Value]:
    ipv6 = any(ipaddress.ip_address(one).version == 6 for one in node_ips)
    pods = [str(one) for one in cluster.pods if ipv6 or one.version == 4]
    # Also while a node has it: a server that has to restart when that one moves is none.
    api = (cluster.document.api.address,) if cluster.document.api.address else ()
    settings: dict[str, Value] = {
        "advertise-address": node_ips[0],
        "cluster-cidr": ",".join(pods),
        "service-cidr": str(cluster.services),
        "cluster-dns": cluster.dns,
        "disable": _DISABLED,
        # Pod networking is ours in either mode: the engine's own Flannel would take another range.
        "flannel-backend": "none",
        # The ledger gives the ranges, the cluster agent records them (docs/cluster.md).
        "kube-controller-manager-arg": ("allocate-node-cidrs=false",),
        # At the founding, for the cluster's life: the engine gives the key to servers that join.
        "secrets-encryption": True,
        "tls-san": (cluster.document.name, *node_ips, *api),
        "write-kubeconfig": str(places.kubeconfig),
        "write-kubeconfig-mode": "0600",
    }
    if keys.agents is not None:
        settings["agent-token"] = keys.agents
    if part.embedded:
        settings["cluster-init"] = True
    return settings


def _line(name: str, value: Value) -> str:
    """Return a YAML mapping's line; JSON's strings are YAML's double-quoted ones."""
    if isinstance(value, tuple):
        return f"{name}:\n" + "".join(f"  - {json.dumps(one)}\n" for one in value)
    return f"{name}: {json.dumps(value)}\n"
