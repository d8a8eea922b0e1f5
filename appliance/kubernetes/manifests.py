"""The add-ons' manifests: what stands between two ``@`` in them is filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.facts import Cluster
from appliance.kubernetes.places import Places

DOMAIN = "cluster.local"
MANIFEST_MAX = 256 * 1024
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,60}\.yaml", re.ASCII)
# Capitals only: an e-mail address or an annotation is none.
_PLACE = re.compile(r"@([A-Z][A-Z0-9_]*)@")


def values(cluster: Cluster, places: Places) -> dict[str, str]:
    """Return what can be filled in."""
    return {
        "CLUSTER_DNS": cluster.dns,
        "CLUSTER_DOMAIN": DOMAIN,
        "DATA_DIR": str(places.data_dir),
        "POD_CIDR": str(cluster.plan.pod_cidr),
        "SERVICE_CIDR": str(cluster.services),
    }


def fill(name: str, text: str, known: Mapping[str, str]) -> str:
    """Return a manifest filled in. Raises KubernetesError for a place that nobody knows."""
    if unknown := {one for one in _PLACE.findall(text) if one not in known}:
        raise KubernetesError(
            f"the manifest {name} wants @{min(unknown)}@, which is not known",
            hint=f"known: {', '.join(sorted(known))}",
        )
    return _PLACE.sub(lambda one: known[one[1]], text)
