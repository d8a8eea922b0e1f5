"""How much of the node's time others may take: buckets of tokens that refill."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

# Per second, and at once.
Rate = tuple[float, float]

HOSTS_MAX = 1024
# Datagrams of hosts where no member is known to be: each costs a few trials of AES.
STRANGER = 50.0, 200.0
STRANGERS = 250.0, 1000.0
# Of a member's host; a member's address can be forged, so this has an end as well.
MEMBER = 2000.0, 4000.0
REPORT_SECONDS = 60.0


@dataclass(slots=True)
class Bucket:
    """Tokens, ``rate`` per second up to a ``burst``; times are monotonic seconds."""

    rate: float
    burst: float
    level: float
    at: float

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        if now > self.at:
            self.level = min(self.level + (now - self.at) * self.rate, self.burst)
            self.at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


class HostBuckets:
    """A bucket per host, and one for all together."""

    def __init__(self, of_host: Rate, in_all: Rate) -> None:
        self._of_host = of_host
        self._in_all = Bucket(*in_all, in_all[1], 0.0)
        self._hosts: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    def take(self, host: str, now: float) -> bool:
        """Take a token of a host and of all; a host that has none costs the others nothing."""
        bucket = self._hosts.get(host)
        if bucket is None:
            bucket = self._hosts[host] = Bucket(*self._of_host, self._of_host[1], now)
            if len(self._hosts) > HOSTS_MAX:
                self._hosts.popitem(last=False)
        return bucket.take(now) and self._in_all.take(now)


class Guard:
    """Says which datagrams on the control port are worth a look, before anything is tried."""

    def __init__(self) -> None:
        self.dropped = 0
        self._members: dict[str, Bucket] = {}
        self._strangers = HostBuckets(STRANGER, STRANGERS)
        self._reported = 0
        self._report_at = 0.0
        self._last = ""

    def know(self, hosts: Collection[str], now: float) -> None:
        """Say at which hosts members are."""
        self._members = {
            host: self._members.get(host) or Bucket(*MEMBER, MEMBER[1], now) for host in hosts
        }

    def admits(self, host: str, now: float) -> bool:
        """Say whether to look at a datagram from a host; those that are dropped are counted."""
        bucket = self._members.get(host)
        fits = bucket.take(now) if bucket is not None else self._strangers.take(host, now)
        if not fits:
            self.dropped += 1
            self._last = host
        return fits

    def report(self, now: float) -> str | None:
        """Say once a minute that datagrams were dropped."""
        if self.dropped == self._reported or now < self._report_at:
            return None
        count, self._reported = self.dropped - self._reported, self.dropped
        self._report_at = now + REPORT_SECONDS
        return f"{count} datagrams were not looked at: too many, the last from {self._last}"
