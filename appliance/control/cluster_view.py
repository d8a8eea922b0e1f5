"""What the control plane tells Kubernetes on this node (``GET /v1/cluster``)."""

from __future__ import annotations

from appliance.api.cluster import ClusterSettings, ClusterView, MemberView, RangeView
from appliance.cluster.ranges import NodeRange, carries_pods
from appliance.control.endpoints import endpoints_of
from appliance.control.plane import ControlPlane
from appliance.control.views import state_of
from appliance.ledger.claims import RANGE_KIND, grant_view
from appliance.overlay.addresses import pods_prefix, ula_address
from appliance.overlay.status import OverlayStatus
from appliance.problem import Problem
from provisioning.clusters import cluster_of, rivals, services_of
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
        problems=(*problems, *overlay.problems),
        members=tuple(members),
    )


def _services(plane: ControlPlane, own: Member) -> tuple[str | None, Problem | None]:
    """Return the range of services of this node's cluster, or why it has none.

    Of clusters with one range the one has it whose nodes were seen first, as with a grant's count.
    """
    settings, cluster = plane.identity.network.settings, cluster_of(own.labels)
    services = str(services_of(settings, cluster))
    members = {one.node_id: one for one in (*plane.policies.members(), own) if carries_pods(one)}
    others = rivals(settings, cluster, (cluster_of(one.labels) for one in members.values()))
    if not others or not carries_pods(own):
        return services, None
    view = grant_view(plane.gossip.replica, members.values())
    first = min(
        (one for one in members.values() if cluster_of(one.labels) in {cluster, *others}),
        key=lambda one: view.rank(view.claims[one.node_id]),
    )
    holder = cluster_of(first.labels)
    if holder == cluster:
        return services, None
    return None, Problem(
        "cluster-services-taken",
        f"the cluster {cluster or 'without a name'} would have the range of services {services}, "
        f"which is that of the cluster {holder or 'without a name'}",
        "Make tokens with another name: `skerry token new --cluster NAME`, in a network with "
        "enough cluster_bits.",
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
