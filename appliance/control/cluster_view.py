"""What the control plane tells Kubernetes on this node (``GET /v1/cluster``)."""

from __future__ import annotations

from appliance.api.cluster import (
    ApiView,
    ClusterSettings,
    ClusterView,
    MemberView,
    RangeView,
)
from appliance.cluster.ranges import NodeRange, carries_pods
from appliance.control.api_addresses import cluster_before
from appliance.control.endpoints import endpoints_of
from appliance.control.plane import ControlPlane
from appliance.control.views import state_of
from appliance.ledger.claims import RANGE_KIND
from appliance.overlay.addresses import pods_prefix, ula_address
from appliance.overlay.status import OverlayStatus
from appliance.problem import Problem
from provisioning.clusters import api_address_of, cluster_of, services_of
from provisioning.keys import id_text
from provisioning.membership import Member


def cluster_view(plane: ControlPlane, overlay: OverlayStatus, mono: float) -> ClusterView:
    """Return the network as Kubernetes on this node needs it."""
    identity, holdings = plane.identity, plane.policies.holdings
    network, own = identity.network, identity.member()
    settings = network.settings
    services, taken = _services(plane, own)
    problems = tuple(one for one in (holdings.ranges.problem, taken) if one is not None)
    inside = {one.node_id: one for one in plane.policies.members()}
    # Before its certificate is in the ledger, too.
    members = [_member(plane, one, mono) for one in {**inside, own.node_id: own}.values()]
    members.sort(key=lambda one: (one.name, one.node_id))
    return ClusterView(
        node_id=own.id_text,
        name=plane.policies.name_of(own),
        network=network.name,
        network_id=id_text(network.network_id),
        network_key=network.root_key.hex(),
        vpn=settings.vpn,
        interface=overlay.interface if settings.vpn else overlay.uplink,
        mtu=overlay.mtu,
        addresses=_addresses(plane, own, mono),
        roles=tuple(sorted(own.roles)),
        founder=own.founder,
        settings=ClusterSettings(
            host_range=settings.host_range,
            pod_cidr=settings.pod_cidr,
            node_bits=settings.node_bits,
            service_cidr=settings.service_cidr,
            servers=settings.servers,
            expected_nodes=settings.expected_nodes,
            cni=settings.cni,
        ),
        range=_range(holdings.standing_range(mono)),
        pods_ipv6=str(pods_prefix(network.network_id)),
        cluster=cluster_of(own.labels),
        services=services,
        api=_api(plane, cluster_of(own.labels)),
        problems=(*problems, *overlay.problems),
        members=tuple(members),
    )


def _services(plane: ControlPlane, own: Member) -> tuple[str | None, Problem | None]:
    """Return the range of services of this node's cluster, or why it has none."""
    settings, cluster = plane.identity.network.settings, cluster_of(own.labels)
    services = str(services_of(settings, cluster))
    if not carries_pods(own):
        return services, None
    members = (*plane.policies.members(), own)
    holder = cluster_before(cluster, settings, members, plane.gossip.replica)
    if holder is None:
        return services, None
    return None, Problem(
        "cluster-services-taken",
        f"the cluster {cluster or 'without a name'} would have the range of services {services}, "
        f"which is that of the cluster {holder or 'without a name'}",
        "Make tokens with another name: `skerry token new --cluster NAME`, in a network with "
        "enough cluster_bits.",
    )


def _api(plane: ControlPlane, cluster: str) -> ApiView:
    """Return the address of the cluster's API, or why there is none."""
    settings = plane.identity.network.settings
    address = api_address_of(settings, cluster)
    if address is None and settings.vpn:
        return ApiView(
            why=f"host_range {settings.host_range} has no room for an address of its API",
            hint="Make the network with a larger host_range, or with fewer cluster_bits.",
        )
    if address is None:
        return ApiView(
            why="the network has neither a tunnel nor the setting api_address",
            hint="Make the network with --api-address and a free address of the servers' LAN. "
            "Without one, say which server: `skerry kubeconfig --server ADDRESS`.",
        )
    policies = plane.policies
    held = (one for one in policies.members() if policies.address_of(one.node_id) == address)
    taken = next(held, None)
    if taken is None:
        return ApiView(str(address))
    name = policies.name_of(taken)
    return ApiView(
        str(address),
        why=f"the node {name} had it before it was the API's",
        hint=f"Give that node another: `skerry node address {name} ADDRESS`.",
    )


def _member(plane: ControlPlane, member: Member, mono: float) -> MemberView:
    holdings, node_id = plane.policies.holdings, member.node_id
    own = node_id == plane.identity.node_id
    held = holdings.standing_range(mono) if own else holdings.range_of(node_id)
    return MemberView(
        node_id=member.id_text,
        name=plane.policies.name_of(member),
        state=state_of(plane, node_id),
        addresses=_addresses(plane, member, mono),
        roles=tuple(sorted(member.roles)),
        founder=member.founder,
        range=_range(held),
        fixed=held is not None and node_id in holdings.views[RANGE_KIND].fixed,
        labels=dict(member.labels),
    )


def _addresses(plane: ControlPlane, member: Member, mono: float) -> tuple[str, ...]:
    network = plane.identity.network
    if not network.settings.vpn:
        now_ms = plane.timekeeper.now_ms(mono)
        found = endpoints_of(plane.gossip.replica, member.node_id, now_ms)
        hosts = dict.fromkeys(one.host for one in found)
        return tuple(sorted(hosts, key=lambda one: ":" in one))
    ipv4 = plane.policies.address_of(member.node_id)
    ipv6 = str(ula_address(network.network_id, member.node_key))
    return (str(ipv4), ipv6) if ipv4 else (ipv6,)


def _range(one: NodeRange | None) -> RangeView | None:
    return None if one is None else RangeView(str(one.ipv4), str(one.ipv6))
