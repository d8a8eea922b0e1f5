"""Asks a service a dozen times and prints who answered: ``python -m ... tcp|udp HOST PORT``."""

from __future__ import annotations

import socket
import sys

TIMES = 12


def _ask(protocol: str, host: str, port: int) -> str:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(socket.AF_INET, kind) as channel:
            channel.settimeout(1.0)
            channel.connect((host, port))
            if protocol == "udp":
                channel.send(b"who")
            return channel.recv(100).decode()
    except OSError:
        return "nobody"


if __name__ == "__main__":
    found = {_ask(sys.argv[1], sys.argv[2], int(sys.argv[3])) for _ in range(TIMES)}
    print(",".join(sorted(found)))
