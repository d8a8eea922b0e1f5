"""A pod that pings all the time: who did something meanwhile must not have lost a packet."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.netns.cni import Pod

PINGS_PER_SECOND = 20


@contextmanager
def traffic(pod: Pod, address: str) -> Iterator[None]:
    """Have a pod ping all the time, and fail if one is lost."""
    process = subprocess.Popen(
        pod.command("ping", "-n", "-q", "-i", str(1 / PINGS_PER_SECOND), "-W", "1", address),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=10)
    sent, received = (
        int(said.split(word)[0].rsplit(None, 1)[-1]) for word in (" packets", " received")
    )
    assert sent > PINGS_PER_SECOND
    # The last one may be under way.
    assert received >= sent - 1, said
