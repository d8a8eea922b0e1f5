"""Asks a service once and prints what it said: ``python -m ... tcp|udp HOST PORT``."""

from __future__ import annotations

import socket
import sys


def main(protocol: str, host: str, port: int) -> int:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(socket.AF_INET, kind) as channel:
            channel.settimeout(1.0)
            channel.connect((host, port))
            if protocol == "udp":
                channel.send(b"who")
            print(channel.recv(100).decode())
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
