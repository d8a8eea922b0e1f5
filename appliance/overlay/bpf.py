"""The classic BPF program of the control socket.

WireGuard owns the UDP port; a raw socket beside it sees a copy of every UDP packet of the machine.
The program lets through only what is for our port, long enough to be sealed, and no WireGuard
message. On IPv4 a raw socket's packet begins at the IP header, on IPv6 at the UDP header. A load
beyond the packet's end drops it (linux/filter.h).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.overlay.seal import DATAGRAM_MAX, DATAGRAM_MIN

_LD_W_IND, _LD_H_IND = 0x40, 0x48
_LDX_HEADER_LENGTH = 0xB1
_LDX_IMM = 0x01
_JEQ, _JGT, _JGE = 0x15, 0x25, 0x35
_RETURN = 0x06
_UDP_HEADER = 8
_ALL = 0xFFFF_FFFF
_WIREGUARD_FIRST, _WIREGUARD_LAST = 1, 4


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: code, jumps if true and if false, operand."""

    code: int
    jt: int
    jf: int
    k: int


def control_filter(port: int, *, ipv6: bool) -> tuple[Instruction, ...]:
    """Return the program for our UDP port."""
    types = range(_WIREGUARD_FIRST, _WIREGUARD_LAST + 1)
    # Each check names how many instructions lie between it and the final "drop".
    checks = [
        (_LD_H_IND, 2, None),
        (_JEQ, port, False),
        (_LD_H_IND, 4, None),
        (_JGE, _UDP_HEADER + DATAGRAM_MIN, False),
        (_JGT, _UDP_HEADER + DATAGRAM_MAX, True),
        (_LD_W_IND, _UDP_HEADER, None),
        # The first byte is the type, then three zero bytes.
        *((_JEQ, kind << 24, True) for kind in types),
    ]
    start = Instruction(_LDX_IMM, 0, 0, 0) if ipv6 else Instruction(_LDX_HEADER_LENGTH, 0, 0, 0)
    program = [start]
    for place, (code, operand, drop_if) in enumerate(checks):
        to_drop = len(checks) - place  # over the rest and the "accept"
        jt, jf = (0, 0) if drop_if is None else (to_drop, 0) if drop_if else (0, to_drop)
        program.append(Instruction(code, jt, jf, operand))
    program += [Instruction(_RETURN, 0, 0, _ALL), Instruction(_RETURN, 0, 0, 0)]
    return tuple(program)


def assemble(program: Sequence[Instruction]) -> bytes:
    """Return the array of ``struct sock_filter``."""
    return b"".join(struct.pack("=HBBI", one.code, one.jt, one.jf, one.k) for one in program)
