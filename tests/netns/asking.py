"""Asks a service a dozen times and prints who answered: ``python -m ... tcp|udp HOST PORT``.

Who is refused hears so at once. A busy machine gets its time to answer, so where nobody is
at all a few questions have to do.
"""

from __future__ import annotations

import socket
import sys

TIMES, SILENCES = 12, 3
SECONDS = 4.0
NOBODY, SILENCE = "nobody", ""


def _ask(protocol: str, host: str, port: int) -> str:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(socket.AF_INET, kind) as channel:
            channel.settimeout(SECONDS)
            channel.connect((host, port))
            if protocol == "udp":
                channel.send(b"who")
            return channel.recv(100).decode()
    except TimeoutError:
        return SILENCE
    except OSError:
        return NOBODY


def _all(protocol: str, host: str, port: int) -> set[str]:
    found: set[str] = set()
    silent = 0
    for _ in range(TIMES):
        one = _ask(protocol, host, port)
        silent += one == SILENCE
        found.add(one or NOBODY)
        if silent == SILENCES or (silent and len(found) > 1):
            break
    return found


if __name__ == "__main__":
    print(",".join(sorted(_all(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
