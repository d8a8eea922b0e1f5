"""The members as the ledger knows them: certificates in, revoked nodes and grants out.

A certificate is judged by its chain alone (root -> grant -> node), never by time: replicas that
hear of it at different times must come to the same set. Whether a grant was used in time and not
too often is a question of `claims.admitted`.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.ledger.entry import Entry
from appliance.ledger.rules import MEMBER
from provisioning.keys import id_text
from provisioning.membership import CertificateError, Member, verify_certificate
from provisioning.network import NetworkInfo

NODE_PREFIX = "node/"
GRANT_PREFIX = "grant/"


class Directory:
    """Who is a member. Fed by `state.Replica`; ``generation`` moves with every change."""

    def __init__(self, network: NetworkInfo) -> None:
        self.network = network
        self.generation = 0
        self._members: dict[bytes, Member] = {}
        self._revoked: set[str] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def member(self, node_id: bytes) -> Member | None:
        """Return a member that is not revoked."""
        return self._members.get(node_id)

    def judge(self, entry: Entry) -> Member | None:
        """Return the member that wrote ``entry``, if it is one.

        An entry of the member bucket brings its own proof: the certificate in its value.
        """
        if entry.bucket != MEMBER:
            return self._members.get(entry.owner)
        return self.prove(entry.value, entry.owner)

    def prove(self, certificate: bytes, node_id: bytes) -> Member | None:
        """Return the member whose certificate it is, if it is that of ``node_id`` and stands."""
        try:
            member = verify_certificate(
                certificate, network=self.network, now=0, admitted=lambda _: True
            )
        except CertificateError:
            return None
        if member.node_id != node_id or self.is_revoked(member):
            return None
        return member

    def is_revoked(self, member: Member) -> bool:
        """Say whether the node or its grant is out."""
        return not self._revoked.isdisjoint(
            (revocation_key(NODE_PREFIX, member.node_id), grant_key(member))
        )

    def add(self, member: Member) -> None:
        """Let a proven member in."""
        if member.node_id not in self._members:
            self.generation += 1
        self._members[member.node_id] = member

    def revoke(self, key: str) -> list[bytes]:
        """Take note of a revocation (the key of its entry); return the members that are out now."""
        self._revoked.add(key)
        out = [one.node_id for one in self._members.values() if self.is_revoked(one)]
        for node_id in out:
            del self._members[node_id]
        self.generation += len(out)
        return out


def revocation_key(prefix: str, identifier: bytes) -> str:
    """Return the key of the entry that revokes a node or a grant."""
    return prefix + id_text(identifier)


def grant_key(member: Member) -> str:
    """Return the key of the entry that would revoke a member's grant."""
    return revocation_key(GRANT_PREFIX, member.grant_id)
