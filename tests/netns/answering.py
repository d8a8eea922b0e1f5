"""A service that says who it is: TCP and UDP at one port. ``python -m ... PORT WORD``."""

from __future__ import annotations

import socket
import sys
import threading


def _datagrams(port: int, word: bytes) -> None:
    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    channel.bind(("", port))
    while True:
        _, sender = channel.recvfrom(100)
        channel.sendto(word, sender)


def main(port: int, word: bytes) -> None:
    threading.Thread(target=_datagrams, args=(port, word), daemon=True).start()
    with socket.create_server(("", port)) as listener:
        while True:
            channel, _ = listener.accept()
            with channel:
                channel.sendall(word)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].encode())
