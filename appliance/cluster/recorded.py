"""What Kubernetes says of a node's pod range (``Node.spec.podCIDRs``), against the ledger's word.

The ledger decides. Kubernetes lets a node's ranges be set once and never changed (its validation of
node updates), so a conflict is not written over: it is refused here (no pod is started, see
`Reconciled.use`) and there (nothing is recorded) until a person has removed the wrong one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from appliance.cluster.ranges import Network, NodeRange, RangePlan
from appliance.problem import Problem

# Longer texts are no range.
_TEXT_MAX = 64
_ANEW = (
    "Whatever is right: drain the node, remove it from Kubernetes (`kubectl delete node {node}`), "
    "and restart it: it comes back with the range of the ledger."
)


class Verdict(Enum):
    """What to do about a node's range. Only AGREED and RECORD let pods start."""

    WAIT = "nothing is known yet"
    ADOPT = "claim in the ledger what Kubernetes has"
    RECORD = "tell Kubernetes"
    AGREED = "both say the same"
    REFUSED = "they contradict each other"


@dataclass(frozen=True, slots=True)
class Reconciled:
    """A verdict and what follows from it.

    ``use`` is the range that pods may have; without one, no CNI configuration is written and the
    overlay carries no pods of this node. ``adopt`` goes to `ranges.ranges`; ``record`` is what to
    write to ``Node.spec.podCIDRs`` (its first is ``podCIDR``).
    """

    verdict: Verdict
    use: NodeRange | None = None
    adopt: ipaddress.IPv4Network | None = None
    record: tuple[str, ...] = ()
    problem: Problem | None = None


def reconcile(
    node: str,
    claimed: NodeRange | None,
    recorded: Sequence[str],
    plan: RangePlan,
    others: Mapping[str, Sequence[str]] | None = None,
) -> Reconciled:
    """Return what to do about the range of the Kubernetes node called ``node``.

    ``claimed`` is what the node holds in the ledger, ``recorded`` its ``podCIDRs``, ``others``
    those of all other Kubernetes nodes by name (unreadable ones are theirs to deal with).
    """
    said = read_recorded(recorded)
    if said is None:
        return _refused(
            "pod-range-unreadable",
            f"Kubernetes has {_short(recorded)} as the pod ranges of {node}, which can't be read "
            "as one range of IPv4 and at most one of IPv6",
            node,
        )
    if claimed is None:
        return _unclaimed(node, said, plan)
    rival = _rival(claimed, {} if others is None else others)
    if said and not _same(claimed, said):
        return _refused(
            "pod-range-conflict",
            f"Kubernetes has {', '.join(map(str, said))} as the pod range of {node}, the ledger "
            f"has {claimed.ipv4} and {claimed.ipv6}",
            node,
        )
    if rival is not None:
        return Reconciled(
            Verdict.REFUSED,
            problem=Problem(
                "pod-range-in-use",
                f"{node} has the pod range {claimed.ipv4} in the ledger, and Kubernetes has "
                f"{rival[1]} for {rival[0]}",
                f"If {rival[0]} is gone, remove it from Kubernetes too: "
                f"`kubectl delete node {rival[0]}`.",
            ),
        )
    if said:
        return Reconciled(Verdict.AGREED, claimed)
    return Reconciled(Verdict.RECORD, claimed, record=(str(claimed.ipv4), str(claimed.ipv6)))


def read_recorded(texts: Sequence[str]) -> tuple[Network, ...] | None:
    """Return the ranges in ``podCIDRs``, IPv4 first; None if that is not what is there."""
    found = [one for one in map(_read, texts) if one is not None]
    found.sort(key=lambda one: one.version)
    # One of IPv4, or both families.
    right = len(found) == len(texts) <= 2 and [one.version for one in found] == [4, 6][: len(found)]
    return tuple(found) if right else None


def _read(text: str) -> Network | None:
    _, slash, length = text.partition("/")
    if not slash or len(text) > _TEXT_MAX or not (length.isascii() and length.isdigit()):
        return None
    try:
        return ipaddress.ip_network(text) if "%" not in text else None
    except ValueError:
        return None


def _unclaimed(node: str, said: tuple[Network, ...], plan: RangePlan) -> Reconciled:
    if not said:
        return Reconciled(Verdict.WAIT)
    ipv4 = said[0]
    if isinstance(ipv4, ipaddress.IPv4Network) and plan.has(ipv4):
        if _same(plan.pod_range(ipv4), said):
            return Reconciled(Verdict.ADOPT, adopt=ipv4)
        return _refused(
            "pod-range-conflict",
            f"Kubernetes has {said[1]} as the IPv6 pod range of {node}; with {ipv4} goes "
            f"{plan.pod_range(ipv4).ipv6}",
            node,
        )
    return _refused(
        "pod-range-conflict",
        f"Kubernetes has {ipv4} as the pod range of {node}; this network's are /{plan.prefix} of "
        f"{plan.pod_cidr}",
        node,
    )


def _same(claimed: NodeRange, said: tuple[Network, ...]) -> bool:
    """Say whether Kubernetes says the same; it may know of IPv4 only, IPv6 follows from that."""
    return said in {(claimed.ipv4,), (claimed.ipv4, claimed.ipv6)}


def _rival(claimed: NodeRange, others: Mapping[str, Sequence[str]]) -> tuple[str, Network] | None:
    for name, texts in sorted(others.items()):
        for one in read_recorded(texts) or ():
            mine = claimed.ipv4 if one.version == 4 else claimed.ipv6
            if one.overlaps(mine):
                return name, one
    return None


def _refused(code: str, message: str, node: str) -> Reconciled:
    return Reconciled(Verdict.REFUSED, problem=Problem(code, message, _ANEW.format(node=node)))


def _short(recorded: Sequence[str]) -> str:
    return ", ".join(repr(one[:_TEXT_MAX]) for one in recorded[:3]) or "nothing"
