"""The secrets of the epochs that a node knows, as the overlay uses them: which key, which names.

A revocation begins a new epoch (`appliance.ledger.epochs`). Everything is sealed and announced
under the current one; older ones are read, so that a member that was away can catch up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from appliance.ledger.epochs import OVERLAP_MS, Reading, Secrets
from appliance.overlay.otp import SLOT_SECONDS, Seed

# More are not tried on what comes in.
EPOCHS_MAX = 4


class Keyring:
    """The seeds of at most EPOCHS_MAX epochs, the current one among them."""

    def __init__(self, seed: Seed) -> None:
        self._slot_seconds = seed.slot_seconds
        self._secrets = Secrets({seed.epoch: seed.secret})
        self._seeds = {seed.epoch: seed}

    def __contains__(self, epoch: object) -> bool:
        return epoch in self._seeds

    @property
    def current(self) -> int:
        """The epoch in which this node speaks."""
        return self._secrets.current

    @property
    def slot_seconds(self) -> int:
        """How long a slot is."""
        return self._slot_seconds or SLOT_SECONDS

    def seed(self, epoch: int | None = None) -> Seed:
        """Return an epoch's seed, the current one's by default. Raises KeyError."""
        return self._seeds[self.current if epoch is None else epoch]

    def seeds(self) -> tuple[Seed, ...]:
        """Return all seeds, the latest first."""
        return tuple(self._seeds[epoch] for epoch in sorted(self._seeds, reverse=True))

    def announced(self, unix: float) -> tuple[Seed, ...]:
        """Return the seeds under whose names this node can be found: two during the overlap."""
        return tuple(
            one
            for one in self.seeds()
            if one.epoch >= self.current - 1 and self.reading(one.epoch, unix) is Reading.ALL
        )

    def overlap_ends_in(self, unix: float) -> float | None:
        """Return the seconds until the epoch before is no longer announced; None: it is not."""
        if len(self.announced(unix)) < 2:
            return None
        return (self._secrets.since_ms + OVERLAP_MS) / 1000 - unix

    def reading(self, epoch: int, unix: float) -> Reading:
        """Return what datagrams of an epoch may carry at a Unix time."""
        return self._secrets.reading(epoch, int(unix * 1000) if math.isfinite(unix) else 0)

    def replace(self, secrets: Mapping[int, bytes], current: int, since_unix: float) -> set[int]:
        """Know these secrets from now on; return the epochs that are new or have another secret.

        Epochs after ``current`` are not for use yet. Raises ValueError if that one is not there.
        """
        usable = {epoch: secrets[epoch] for epoch in sorted(secrets) if epoch <= current}
        if current not in usable:
            raise ValueError(f"no secret of epoch {current}")
        kept = {epoch: usable[epoch] for epoch in sorted(usable)[-EPOCHS_MAX:]}
        old, self._seeds = (
            self._seeds,
            {epoch: Seed(secret, epoch, self._slot_seconds) for epoch, secret in kept.items()},
        )
        self._secrets = Secrets(kept, int(since_unix * 1000))
        return {epoch for epoch, seed in self._seeds.items() if old.get(epoch) != seed}
