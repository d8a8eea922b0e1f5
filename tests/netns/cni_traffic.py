"""A pod that pings all the time: who did something meanwhile must not have lost a packet."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.netns.cni import Pod

PINGS_PER_SECOND = 20
_SENT = re.compile(rb"(\d+) packets transmitted")
_ANSWER = re.compile(rb"icmp_seq=(\d+) ttl=")


@contextmanager
def traffic(pod: Pod, address: str) -> Iterator[None]:
    """Have a pod ping all the time, and fail if one is lost."""
    # A pipe would be full after a minute, and hold it up.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            pod.command("ping", "-n", "-i", str(1 / PINGS_PER_SECOND), "-W", "1", address),
            stdout=said,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10)
        said.seek(0)
        text = said.read()
    answered = {int(one) for one in _ANSWER.findall(text)}
    found = _SENT.search(text)
    assert found is not None
    # Those of the end may be under way; before them, none is missing.
    last = max(answered, default=0)
    assert last > PINGS_PER_SECOND
    assert int(found[1]) - last < PINGS_PER_SECOND
    assert not set(range(1, last + 1)) - answered
