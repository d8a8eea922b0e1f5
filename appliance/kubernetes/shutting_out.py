"""Revoked nodes' certificates change nothing in Kubernetes any more, whichever way they come.

A kubelet's certificate is good until it ends: no API server looks whether it was taken back. So
servers keep an admission policy that names the revoked nodes and refuses whatever these want to
write: their Node anew, its lease, a renewal of the certificate, the status of pods, an account's
token. Reading cannot be refused like that: without a Node there are no pods on it, and so
no Secrets that it may read. Against who has the authorities' keys there is no such means.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from typing import Any

import msgspec

from appliance.kubernetes.draining import Asker
from appliance.kubernetes.errors import KubeApiError

log = logging.getLogger(__name__)

NAME = "skerry-revoked"
# On the policy: the nodes' names, the latest last.
MARK = "skerry/revoked"
# What the policy's expression costs is bounded; certificates end after a year.
NAMES_MAX = 256
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
_USER = "system:node:"
_NODE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_API = "admissionregistration.k8s.io/v1"
_ABSENT, _PRESENT = 404, 409


class _Meta(msgspec.Struct, frozen=True, rename={"version": "resourceVersion"}):
    version: str = ""
    annotations: dict[str, str] = {}


class Policy(msgspec.Struct, frozen=True):
    """The policy as it is in Kubernetes, as much as is used."""

    metadata: _Meta = _Meta()

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes that it shuts out."""
        words = self.metadata.annotations.get(MARK, "").split()
        return tuple(one for one in words if _NODE.fullmatch(one))


def shut_out(
    before: Collection[str], revoked: Collection[str], members: Collection[str]
) -> tuple[str, ...]:
    """Return the names that are to be shut out, the latest last.

    A new machine that has a revoked one's name has to get in, so then the name is let go.
    """
    kept = [one for one in before if one not in members]
    fresh = sorted(set(revoked) - set(members) - set(kept))
    return (*kept, *fresh)[-NAMES_MAX:]


def policy_of(nodes: Collection[str], version: str) -> bytes:
    """Return the policy; ``version``: which one it replaces, empty: there is none yet."""
    # Nobody is called just that: a list is never empty, so it always has a type.
    users = json.dumps([_USER, *(_USER + one for one in nodes)])
    meta: dict[str, Any] = {"name": NAME, "annotations": {MARK: " ".join(nodes)}}
    if version:
        meta["resourceVersion"] = version
    everything = {
        "apiGroups": ["*"],
        "apiVersions": ["*"],
        "operations": ["*"],
        "resources": ["*/*"],
        "scope": "*",
    }
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [everything]},
        "matchConditions": [
            {
                "name": "by-a-node",
                "expression": f"request.userInfo.username.startsWith({json.dumps(_USER)})",
            }
        ],
        "validations": [
            {
                "expression": f"!(request.userInfo.username in {users})",
                "message": "this node was revoked: skerry revoke node",
                "reason": "Forbidden",
            }
        ],
    }
    document = {"apiVersion": _API, "kind": "ValidatingAdmissionPolicy"}
    return json.dumps(document | {"metadata": meta, "spec": spec}).encode()


def binding() -> bytes:
    """Return what puts the policy in force."""
    document = {
        "apiVersion": _API,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": NAME},
        "spec": {"policyName": NAME, "validationActions": ["Deny"]},
    }
    return json.dumps(document).encode()


class ShuttingOut:
    """Sees to the policy; asks Kubernetes only if something is another than at the last look."""

    def __init__(self) -> None:
        self._seen: tuple[frozenset[str], frozenset[str]] | None = None
        # Their Nodes may be gone by the time that it comes about.
        self._owed: frozenset[str] = frozenset()

    def work(self, api: Asker, revoked: Collection[str], members: Collection[str]) -> None:
        """Shut the ``revoked`` out, and nobody of the ``members``; both are names of Nodes.

        Blocks. Raises KubeApiError; with the status 409 another server did so just now: again.
        """
        seen = frozenset(revoked), frozenset(members)
        if seen == self._seen and not self._owed:
            return
        self._owed |= seen[0]
        found = _read(api)
        before = () if found is None else found.nodes
        nodes = shut_out(before, self._owed, members)
        if nodes != before:
            version = "" if found is None else found.metadata.version
            method, path = ("PUT", f"{POLICIES}/{NAME}") if found else ("POST", POLICIES)
            api.ask(method, path, policy_of(nodes, version))
            log.info("revoked nodes that change nothing in Kubernetes: %s", ", ".join(nodes))
        if nodes:
            _bind(api)
        self._seen, self._owed = seen, frozenset()


def _read(api: Asker) -> Policy | None:
    try:
        data = api.ask("GET", f"{POLICIES}/{NAME}")
    except KubeApiError as error:
        if error.status == _ABSENT:
            return None
        raise
    try:
        return msgspec.json.decode(data, type=Policy)
    except (ValueError, RecursionError) as error:
        raise KubeApiError(f"the policy {NAME} can't be read: {str(error)[:200]}") from error


def _bind(api: Asker) -> None:
    try:
        api.ask("POST", BINDINGS, binding())
    except KubeApiError as error:
        if error.status != _PRESENT:
            raise
