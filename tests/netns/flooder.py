"""Sends datagrams as fast as asked.

``python -m tests.netns.flooder HOST PORT RATE SECONDS POOL [SOURCE]``: POOL is a file of datagrams,
each after its length as a big-endian 2-byte number; they are sent over and over, in the name of
SOURCE (a host, or ``many`` for a different one each time) if it is given. Prints ``{"sent",
"seconds"}`` when done. One system call sends many (sendmmsg(2)), or the rate is out of reach.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

_BATCH = 64
_LENGTH = struct.Struct(">H")
_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vectors_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


def write_pool(path: Path, datagrams: Iterable[bytes]) -> None:
    """Write a pool file."""
    path.write_bytes(b"".join(_LENGTH.pack(len(one)) + one for one in datagrams))


def read_pool(path: Path) -> list[bytes]:
    """Return the datagrams of a pool file."""
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        found.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return found


def noise(count: int = 1024) -> list[bytes]:
    """Return datagrams of random bytes, of the sizes that ours have."""
    return [secrets.token_bytes(92 + secrets.randbelow(1089)) for _ in range(count)]


def batches(pool: Sequence[bytes]) -> list[tuple[ctypes.Array[_Message], int]]:
    """Return the pool as arrays for sendmmsg."""
    made = []
    for start in range(0, len(pool), _BATCH):
        part = pool[start : start + _BATCH]
        array = (_Message * len(part))()
        for message, data in zip(array, part, strict=True):
            vector = _Vector(data, len(data))
            message.header.vectors = ctypes.pointer(vector)
            message.header.vectors_length = 1
        made.append((array, len(part)))
    return made


def disguised(pool: Sequence[bytes], source: str, host: str, port: int) -> list[bytes]:
    """Return IP packets (the kernel fills in length, checksum and id) from another address."""
    packets = []
    for number, data in enumerate(pool):
        named = f"192.168.77.{100 + number % 150}" if source == "many" else source
        udp = struct.pack(">HHHH", port, port, 8 + len(data), 0) + data
        head = struct.pack(">BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0)
        packets.append(head + socket.inet_aton(named) + socket.inet_aton(host) + udp)
    return packets


def flood(
    host: str, port: int, rate: int, seconds: float, pool: Sequence[bytes], *, raw: bool = False
) -> int:
    """Send at a rate (packets per second) for a while; return how many were sent."""
    arrays, sent, turn = batches(pool), 0, 0
    kind = (socket.SOCK_RAW, socket.IPPROTO_RAW) if raw else (socket.SOCK_DGRAM, 0)
    with socket.socket(socket.AF_INET, *kind) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        connection.connect((host, port))
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds:
            if sent > passed * rate:
                time.sleep(0.0005)
                continue
            array, length = arrays[turn % len(arrays)]
            turn += 1
            done = _libc.sendmmsg(connection.fileno(), array, length, 0)
            if done < 0 and ctypes.get_errno() not in {11, 105, 111}:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            sent += max(done, 0)
    return sent


def main(host: str, port: int, rate: int, seconds: float, file: Path, source: str = "") -> None:
    pool, begun = read_pool(file), time.monotonic()
    if source:
        pool = disguised(pool, source, host, port)
    sent = flood(host, port, rate, seconds, pool, raw=bool(source))
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - begun}))


if __name__ == "__main__":
    host, port, rate, seconds, file, *source = sys.argv[1:]
    main(host, int(port), int(rate), float(seconds), Path(file), *source)
