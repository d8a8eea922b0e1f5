"""How a machine gets its identity: one from its disk, or a new one from a token that turns up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from appliance import lifecycle
from appliance.config import SupervisorConfig
from appliance.journal import Redactor
from appliance.problem import Problem
from appliance.status import RefusedToken
from appliance.tokens import TokenWatch
from provisioning.identity import Identity, IdentityError, IdentityStore
from provisioning.names import is_name
from provisioning.sources import Found
from provisioning.token import Token
from skerry.errors import SkerryError

log = logging.getLogger(__name__)

RETRY_TOKEN_SECONDS = 30.0


class Enrolment:
    """The identity of one node; ``tell`` hears what the life cycle has to know."""

    def __init__(
        self,
        config: SupervisorConfig,
        *,
        redactor: Redactor,
        wall_clock: Callable[[], float],
        tell: Callable[[lifecycle.Event], None],
    ) -> None:
        self.identity: Identity | None = None
        self._config = config
        self._redactor = redactor
        self._wall_clock = wall_clock
        self._tell = tell
        self._store = IdentityStore(config.identity_dir)
        self._tokens = TokenWatch(config)
        self._in_hand: tuple[Token, Found | None] | None = None
        self._failed_at = float("-inf")

    def load(self) -> None:
        """Take the identity from the disk, if there is one."""
        damage = None
        try:
            self.identity = self._store.load()
        except IdentityError as error:
            damage = self._damage(error)
        for notice in self._store.notices:
            log.info("identity: %s", notice)
        if self.identity is not None:
            self._keep_secret(self.identity)
        self._tell(lifecycle.Begun(self.identity is not None, damage))

    def _damage(self, error: IdentityError) -> Problem:
        """Say whether the identity is gone, or must not be replaced."""
        code = "identity-lost"
        try:
            self._store.load()
        except IdentityError:
            code = "identity-unusable"
        return Problem(code, str(error), error.hint or "")

    def look(self) -> None:
        """Look for a token; after a failure not for a while."""
        if time.monotonic() - self._failed_at < RETRY_TOKEN_SECONDS:
            return
        found = self._tokens.search(self._wall_clock())
        if found is not None:
            log.info(
                "token taken from %s",
                found.where,
                extra={"skerry_source": found.source_name, "skerry_where": found.where},
            )
            self.take(found.token, found)

    def ignore(self, name: str) -> None:
        """Say once of each token that turns up that this node, called ``name``, needs none."""
        if self.identity is not None:
            self._tokens.ignore(f"{name} of {self.identity.network.name}")

    def take(self, token: Token, found: Found | None) -> None:
        """Take a token in hand; ``found`` says where it was, None: it was handed over."""
        self._in_hand = (token, found)
        self._redactor.hide(token.grant_seed)
        self._tell(lifecycle.TokenAccepted(found.source_name if found else "api"))

    async def make(self) -> None:
        """Make an identity with the token in hand; what came of it is told."""
        assert self._in_hand is not None  # noqa: S101 - MakeIdentity follows TokenAccepted only
        token, found = self._in_hand
        self._in_hand = None
        try:
            # Writing waits for the disk; the event loop does not.
            identity = await asyncio.to_thread(
                self._store.create, token, name=self._wanted_name(), now=self._wall_clock()
            )
        except SkerryError as error:
            self._failed_at = time.monotonic()
            problem = Problem("identity-not-made", str(error), error.hint or "")
            self._tell(lifecycle.IdentityFailed(problem))
            return
        self._keep_secret(identity)
        self.identity = identity
        if found is not None:
            self._tokens.used(found)
        log.info(
            "this node is %s (%s) of network %s",
            identity.name,
            identity.id_text,
            identity.network.name,
            extra={"skerry_node": identity.id_text, "skerry_network": identity.network.name},
        )
        self._tell(lifecycle.IdentityMade())

    def refused(self) -> tuple[RefusedToken, ...]:
        """Return the tokens that can't be used, and why."""
        return tuple(
            RefusedToken(one.where, str(one.error), one.error.hint or "")
            for one in self._tokens.rejected
        )

    def _wanted_name(self) -> str | None:
        """Return the name that the operator gave the node, if any: option or credential."""
        name = self._config.name
        if name is None and self._config.credentials is not None:
            with suppress(OSError, UnicodeDecodeError):
                name = (self._config.credentials / "skerry.name").read_text()[:256].strip()
        if name and not is_name(name):
            log.warning("%r can't be the name of a node; it gets one of its own", name)
            return None
        return name or None

    def _keep_secret(self, identity: Identity) -> None:
        self._redactor.hide(identity.wg_private)
        self._redactor.hide(identity.network.otp_seed)
