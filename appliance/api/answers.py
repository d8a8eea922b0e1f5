"""What the local API answers with, as the programs beside the supervisor read it.

Reading is strict about what is used and ignores fields that a newer supervisor adds. What is sent
stands in `appliance.api.cluster`, `secrets` and `ledger`.

Who reads it may be root, who answers is not: a text that comes into a unit's environment or into
packet filter rules is held to its form here.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from appliance.ledger.said import Heard, heard

NodeNameText = Annotated[
    str, msgspec.Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z", max_length=63)
]
# Neither quotes nor white space; the kernel takes 15 bytes. Empty: there is none (yet).
InterfaceText = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.:@+=-]*\Z", max_length=15)]


class RangeFacts(msgspec.Struct, frozen=True):
    """A node's pod range."""

    ipv4: str
    ipv6: str


class SettingsFacts(msgspec.Struct, frozen=True):
    """The network's settings that Kubernetes lives by."""

    host_range: str
    pod_cidr: str
    node_bits: int
    service_cidr: str
    servers: int
    expected_nodes: int | None = None
    cni: str = "native"


class ProblemFacts(msgspec.Struct, frozen=True):
    """A `Problem` in JSON."""

    code: str
    message: str
    hint: str = ""


class MemberFacts(msgspec.Struct, frozen=True):
    """A member; ``state`` is ``self``, ``up``, ``alive`` or ``down``."""

    node_id: str
    name: str
    state: str
    addresses: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    founder: bool = False
    range: RangeFacts | None = None
    labels: dict[str, str] = {}


class ApiFacts(msgspec.Struct, frozen=True):
    """The address that follows the cluster's leader, empty for none; ``why`` none is in use."""

    address: str = ""
    why: str = ""
    hint: str = ""


class ClusterFacts(msgspec.Struct, frozen=True):
    """``GET /v1/cluster``; ids are base32, ``network_key`` (the root's public key) hexadecimal.

    ``services`` is the range of this node's cluster, ``cluster`` what that is called.
    """

    node_id: str
    name: NodeNameText
    network: str
    network_id: str
    vpn: bool
    interface: InterfaceText
    mtu: int
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    founder: bool
    settings: SettingsFacts
    range: RangeFacts | None = None
    pods_ipv6: str = ""
    problems: tuple[ProblemFacts, ...] = ()
    members: tuple[MemberFacts, ...] = ()
    network_key: str = ""
    cluster: str = ""
    # Of this node's cluster; None: another cluster has it (the problems say which).
    services: str | None = ""
    api: ApiFacts = ApiFacts()


class SecretFacts(msgspec.Struct, frozen=True):
    """A row of ``GET /v1/secret``."""

    name: str
    generation: int
    roles: tuple[str, ...]
    exposed: bool
    readable: bool


class SecretList(msgspec.Struct, frozen=True):
    """``GET /v1/secret``."""

    secrets: tuple[SecretFacts, ...]


class LedgerEntry(msgspec.Struct, frozen=True):
    """An entry of a bucket; ``value`` as ``encoding`` says."""

    key: str
    value: str
    encoding: str
    owner: str


class LedgerEntries(msgspec.Struct, frozen=True):
    """``GET /v1/ledger/BUCKET``."""

    entries: tuple[LedgerEntry, ...]

    def heard(self) -> tuple[Heard, ...]:
        """Return them with their values as bytes; what can't be decoded is left out."""
        found = (heard(one.owner, one.key, one.value, one.encoding) for one in self.entries)
        return tuple(one for one in found if one is not None)
