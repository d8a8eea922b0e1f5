"""Tells every TCP caller which address it came from.

``python -m tests.netns.cni_mirror PORT`` listens; with ADDRESS and SECONDS it asks there, for so
long, and prints the answer.
"""

from __future__ import annotations

import socket
import sys


def listen(port: int) -> None:
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as ears:
        print("listening", flush=True)
        while True:
            connection, caller = ears.accept()
            with connection:
                connection.sendall(caller[0].removeprefix("::ffff:").encode())


def ask(port: int, address: str, seconds: float) -> str:
    with socket.create_connection((address, port), seconds) as connection:
        return connection.makefile().read()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        listen(int(sys.argv[1]))
    else:
        try:
            print(ask(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
        except OSError as error:
            sys.exit(f"no answer: {error}")
