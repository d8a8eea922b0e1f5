"""The cluster's credentials: what a server seals for whom, and when it makes new ones.

Pure. Three sealed secrets (docs/ledger.md, "Secrets"): the token by which servers join, the one by
which agents join, and the administrator's kubeconfig. The first and the last are for servers only.
Full tokens are ``K10HASH::USER:SECRET``: the hash of the cluster's authority lets a node that joins
know whom it talks to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.api.answers import SecretFacts
from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.kubeconfig import unpack
from provisioning.names import is_name

SERVER_TOKEN = "cluster-server-token"  # noqa: S105 - its name
AGENT_TOKEN = "cluster-agent-token"  # noqa: S105 - its name
KUBECONFIG = "cluster-kubeconfig"
ROLES: Mapping[str, tuple[str, ...]] = {
    SERVER_TOKEN: ("server",),
    AGENT_TOKEN: ("agent", "server"),
    KUBECONFIG: ("server",),
}
_NAME_MAX = 64
_TOKEN = re.compile(r"(K10[0-9a-f]{64})::([a-z]{1,16}):([!-9;-~]{8,256})", re.ASCII)


def stored_as(name: str, cluster: str) -> str:
    """Return what a cluster's secret is called in the ledger; the usual cluster has no name.

    Else the leaders of two clusters would undo what the other seals, for ever.
    """
    if not cluster:
        return name
    plain = f"{name}.{cluster}"
    if is_name(cluster) and len(plain) <= _NAME_MAX:
        return plain
    return f"{name}.{hashlib.sha256(cluster.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Token:
    """A full token."""

    authority: str
    user: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """As the engine takes it."""
        return f"{self.authority}::{self.user}:{self.secret}"


def read_token(text: str, where: str) -> Token:
    """Return a full token. Raises KubernetesError, which does not show it."""
    match = _TOKEN.fullmatch(text.strip())
    if match is None:
        raise KubernetesError(
            f"{where} holds no join token (K10HASH::USER:SECRET)",
            hint="the engine writes it when it founds the cluster; a damaged one is put anew by "
            "the founder within a minute",
        )
    return Token(match[1], match[2], match[3])


def agent_token(server: Token, secret: str) -> str:
    """Return the token that agents join by."""
    return Token(server.authority, "node", secret).text


@dataclass(frozen=True, slots=True)
class Own:
    """What there is to seal; ``leads``: of all servers, this one speaks for the cluster.

    ``kubeconfig`` None: the one that this server's engine has is of before a change of the token.
    """

    server_token: str = field(repr=False)
    agent_token: str = field(repr=False)
    kubeconfig: str | None = field(repr=False)
    leads: bool


@dataclass(frozen=True, slots=True)
class Put:
    """Seal a value for members with one of the roles."""

    name: str
    value: str = field(repr=False)
    roles: tuple[str, ...]


def puts(own: Own, listed: Mapping[str, SecretFacts], values: Mapping[str, str]) -> tuple[Put, ...]:
    """Return what is to be sealed: what nobody has sealed yet, and what is not true any more.

    ``values`` are those that this node can read. Only one server speaks, so that none undoes what
    another did.
    """
    if not own.leads:
        return ()
    mine = {
        SERVER_TOKEN: own.server_token,
        AGENT_TOKEN: own.agent_token,
        KUBECONFIG: own.kubeconfig,
    }
    return tuple(
        Put(name, value, ROLES[name])
        for name, value in mine.items()
        if value is not None and (name not in listed or not _holds(name, values.get(name), value))
    )


def _holds(name: str, sealed: str | None, own: str) -> bool:
    """Say whether a sealed value does; each server has an administrator's certificate of its own.

    So another server's kubeconfig is left alone if it is of the same cluster.
    """
    if sealed == own or name != KUBECONFIG or sealed is None:
        return sealed == own
    try:
        theirs, mine = unpack(sealed, name), unpack(own, name)
    except KubernetesError:
        return False
    return theirs.authority == mine.authority and theirs.server != mine.server


def must_rotate(name: str, listed: Mapping[str, SecretFacts], replaced: int) -> bool:
    """Say whether one who is out has had the token of a name, so that it has to be another.

    ``replaced`` is the last generation that was: what is listed may be older than that.
    """
    found = listed.get(name)
    return found is not None and found.exposed and found.readable and found.generation > replaced
