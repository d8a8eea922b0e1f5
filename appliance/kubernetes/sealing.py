"""The tokens of this node's engine: read from sealed secrets, and sealed by the one who leads."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets

from appliance.kubernetes import credentials, files
from appliance.kubernetes.asking import Supervisor
from appliance.kubernetes.config import Keys
from appliance.kubernetes.credentials import (
    AGENT_TOKEN,
    SERVER_TOKEN,
    Own,
    Token,
    read_token,
    stored_as,
)
from appliance.kubernetes.errors import KubernetesError
from appliance.kubernetes.kubeconfig import FILE_MAX, Kubeconfig, pack, read_kubeconfig
from appliance.kubernetes.observing import Observed
from appliance.kubernetes.operator_box import seal_for_operator
from appliance.kubernetes.part import Kind, Part
from appliance.kubernetes.places import API_PORT, Places
from appliance.kubernetes.serving import server_url

log = logging.getLogger(__name__)

_TOKEN_MAX = 4096
_CONFIG_MAX = 256 * 1024
# An entry of the bucket `cluster`, under the node's own id: sealed to the network's root key.
OPERATOR_KIND = "kubeconfig"


class Sealer:
    """What this node knows of the cluster's credentials."""

    def __init__(self, places: Places, supervisor: Supervisor) -> None:
        self._places = places
        self._supervisor = supervisor
        # By name, the generation of what was sealed over.
        self._replaced: dict[str, int] = {}

    def keys(self, observed: Observed, part: Part) -> Keys | None:
        """Return what the engine of a part needs; None: nobody has sealed it yet.

        Raises KubernetesError for what is no token.
        """
        if part.kind is Kind.AGENT:
            found = self._sealed(observed, AGENT_TOKEN)
            return None if found is None else Keys(self._joined_by(found).text)
        if part.founds:
            return Keys(self._founders_token(observed), self._agent_secret(observed))
        server, agent = self._sealed(observed, SERVER_TOKEN), self._sealed(observed, AGENT_TOKEN)
        if server is None or agent is None:
            return None
        return Keys(server.text, agent.secret)

    async def seal(self, observed: Observed, *, leads: bool) -> None:
        """Seal what nobody has sealed yet, and new values where one who is out has had them.

        Raises KubernetesError: the engine has not written its files yet, or the supervisor is away.
        """
        if not leads:
            return
        engine = self._own_token()
        config = self._own_kubeconfig(observed)
        server = self._server_token(observed, engine)
        # Who administers follows from the token that the engine runs with.
        current = server.secret == engine.secret
        secret = self._agent_secret(observed)
        if self._was_seen(SERVER_TOKEN, observed):
            server = Token(engine.authority, engine.user, secrets.token_hex(32))
        if self._was_seen(AGENT_TOKEN, observed):
            secret = secrets.token_hex(32)
        mine = pack(config) if current else None
        own = Own(server.text, credentials.agent_token(server, secret), mine, leads)
        for put in credentials.puts(own, observed.secrets, observed.values):
            name = stored_as(put.name, observed.cluster.document.cluster)
            await self._supervisor.put_secret(name, put.value.encode(), put.roles)
            if (before := observed.secrets.get(put.name)) is not None:
                self._replaced[put.name] = before.generation
            log.info("%s is sealed to %s", name, ", ".join(put.roles))
        if current:
            await self._seal_for_operator(observed, config)

    def _was_seen(self, name: str, observed: Observed) -> bool:
        seen = credentials.must_rotate(name, observed.secrets, self._replaced.get(name, -1))
        if seen:
            log.warning("one who is out has seen %s: a new one is made", name)
        return seen

    def _founders_token(self, observed: Observed) -> str | None:
        """Return the token that the founder's engine is given.

        It makes one by itself at first, and finds it again: None. A later one is sealed.
        """
        present = token_in(files.read_text(self._places.config, _CONFIG_MAX) or "")
        try:
            engine = self._own_token()
        except KubernetesError:
            return present
        server = self._server_token(observed, engine)
        return present if server.secret == engine.secret else server.text

    def _server_token(self, observed: Observed, engine: Token) -> Token:
        """Return the token that servers join by: the sealed one, if it is of this cluster."""
        try:
            sealed = self._sealed(observed, SERVER_TOKEN)
        except KubernetesError as error:
            log.warning("%s; another is sealed over it", error)
            return engine
        same = sealed is not None and (sealed.authority, sealed.user) == (
            engine.authority,
            engine.user,
        )
        return sealed if sealed is not None and same else engine

    def _joined_by(self, sealed: Token) -> Token:
        """Return the token that this agent runs with already, if it has joined by it.

        It is of no more use then; a new one for those to come restarts nobody.
        """
        places = self._places
        text = token_in(files.read_text(places.config, _CONFIG_MAX) or "")
        if text is None or not places.kubelet_kubeconfig.exists():
            return sealed
        present = read_token(text, str(places.config))
        # One that was a server forgets the servers' token.
        same = (present.authority, present.user) == (sealed.authority, sealed.user)
        return present if same else sealed

    def _sealed(self, observed: Observed, name: str) -> Token | None:
        text = observed.values.get(name)
        return None if text is None else read_token(text, f"the secret {name}")

    def _agent_secret(self, observed: Observed) -> str:
        """Return the secret that agents join by; the founder makes it before there is a cluster.

        A damaged one in the ledger is as good as none.
        """
        try:
            if (sealed := self._sealed(observed, AGENT_TOKEN)) is not None:
                return sealed.secret
        except KubernetesError as error:
            # Whoever put it: the leader seals a right one over it, which needs this one to run.
            log.warning("%s; another is sealed over it", error)
        path = self._places.agent_secret
        text = (files.read_text(path, _TOKEN_MAX) or "").strip()
        if not text:
            text = secrets.token_hex(32)
            files.write(path, f"{text}\n".encode())
        return text

    def _own_token(self) -> Token:
        path = self._places.server_token
        text = files.read_text(path, _TOKEN_MAX)
        if text is None:
            raise KubernetesError(f"the engine has not written {path} yet")
        return read_token(text, str(path))

    def _own_kubeconfig(self, observed: Observed) -> Kubeconfig:
        path = self._places.kubeconfig
        text = files.read_text(path, FILE_MAX)
        if text is None:
            raise KubernetesError(f"the engine has not written {path} yet")
        one = read_kubeconfig(text, str(path))
        url = server_url(public_address(observed), API_PORT)
        return Kubeconfig(url, one.authority, one.certificate, one.key)

    async def _seal_for_operator(self, observed: Observed, config: Kubeconfig) -> None:
        key = f"{observed.cluster.document.node_id}/{OPERATOR_KIND}"
        root = observed.cluster.document.network_key
        mark = hashlib.sha256(f"{key}\0{root}\0{pack(config)}".encode()).hexdigest().encode()
        # A sealed box can't be read back here: what was sealed is remembered by its hash.
        there = any(one.key == key for one in observed.said)
        if there and files.read(self._places.sealed, 128) == mark:
            return
        value = seal_for_operator(root, observed.cluster.plan.network_id, config)
        await self._supervisor.put_entry(key, value)
        await asyncio.to_thread(files.write, self._places.sealed, mark)
        log.info("the kubeconfig is sealed to the network's root key")


def public_address(observed: Observed) -> str:
    """Return where people reach the API: the address that follows the leader, if there may be one.

    Of several servers, that is: one alone has an address of its own for life.
    """
    document = observed.cluster.document
    # Orders are for the cluster without a name.
    ordered = None if document.cluster else observed.orders.servers
    if (ordered or document.settings.servers) > 1 and not document.api.why:
        return document.api.address or observed.cluster.node_addresses[0]
    return observed.cluster.node_addresses[0]


def token_in(config: str) -> str | None:
    """Return the token in an engine's configuration."""
    start = 'token: "'
    lines = (one for one in config.splitlines() if one.startswith(start))
    return next((one.removeprefix(start).removesuffix('"') for one in lines), None)
