"""An outsider on the LAN: writes every mDNS packet that it sees to a file.

``python -m tests.netns.capture FILE``: each packet as a big-endian 2-byte length and its bytes.
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

_ETH_P_ALL = 3
_MDNS = struct.pack(">H", 5353)


def main(file: Path) -> None:
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as ears,
        file.open("wb") as out,
    ):
        while True:
            packet = ears.recv(65536)
            # Ethernet, IPv4 of 20 or IPv6 of 40 bytes, UDP destination port.
            if packet[36:38] == _MDNS or packet[56:58] == _MDNS:
                out.write(struct.pack(">H", len(packet)) + packet)
                out.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
