"""Looks for a token on behalf of the supervisor, and names bad ones once per change."""

from __future__ import annotations

import logging
from pathlib import Path

from appliance.config import SupervisorConfig
from provisioning.files import FileError, read_small
from provisioning.sources import Candidate, Found, Rejected, Source, find_token, inbox, node_sources
from provisioning.token import TEXT_LIMIT

log = logging.getLogger(__name__)


class TokenWatch:
    """The token sources of one supervisor."""

    def __init__(self, config: SupervisorConfig) -> None:
        self._inbox = config.inbox
        self._sources = node_sources(inbox=config.inbox, credentials=config.credentials)
        if config.token_file is not None:
            self._sources.insert(0, _file_source(config.token_file))
        self.rejected: tuple[Rejected, ...] = ()
        self._said: frozenset[tuple[str, str]] = frozenset()
        self._ignored: frozenset[str] = frozenset()

    def search(self, now: float) -> Found | None:
        """Return the first valid token; ``rejected`` then holds those before it."""
        search = find_token(self._sources, now=now)
        self.rejected = search.rejected
        said = frozenset((one.where, str(one.error)) for one in search.rejected)
        for one in search.rejected:
            if (one.where, str(one.error)) not in self._said:
                log.warning(
                    "the token from %s can't be used: %s. %s",
                    one.where,
                    one.error,
                    one.error.hint or "",
                    extra={"skerry_source": one.source, "skerry_where": one.where},
                )
        self._said = said
        return search.found

    def used(self, found: Found) -> None:
        """Forget a token that has become an identity: it is not needed again."""
        self.rejected = ()
        if found.path is not None:
            inbox.discard(found.path)

    def ignore(self, whose: str) -> None:
        """Say once that what is handed over now is not taken: the node has an identity."""
        try:
            names = frozenset(
                path.name for path in self._inbox.iterdir() if inbox.kind_of(path.name)
            )
        except OSError:
            return
        for name in sorted(names - self._ignored):
            log.info("the token %s is not needed: this node is %s", inbox.shown(name), whose)
        self._ignored = names


def _file_source(path: Path) -> Source:
    def tokens() -> list[Candidate | Rejected]:
        try:
            return [Candidate("file", str(path), read_small(path, TEXT_LIMIT))]
        except FileNotFoundError:
            return []
        except FileError as error:
            return [Rejected("file", str(path), error)]
        except OSError as error:
            return [Rejected("file", str(path), FileError(f"it can't be read: {error.strerror}"))]

    return tokens
