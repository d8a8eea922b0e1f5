"""Reads which shared libraries an ELF program needs (System V gABI, 64-bit little-endian)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from image.errors import BuildError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_LOAD, _DYNAMIC_SEGMENT, _INTERPRETER = 1, 2, 3
_NEEDED, _STRTAB = 1, 5


@dataclass(frozen=True, slots=True)
class Needs:
    """The loader's path (None: static) and the names of the libraries."""

    interpreter: str | None
    libraries: tuple[str, ...]


def needs(data: bytes, *, name: str = "the program") -> Needs:
    """Return what a program or library needs; raises :class:`BuildError` when it is none."""
    try:
        return _needs(data)
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise BuildError(f"{name} is no 64-bit little-endian ELF file: {error}") from error


def _needs(data: bytes) -> Needs:
    ident, *_, program_offset, _, _, _, entry_size, count, _, _, _ = _HEADER.unpack_from(data)
    if ident[:6] != b"\x7fELF\x02\x01" or entry_size != _PROGRAM.size:
        raise ValueError("wrong magic")
    segments = [
        _PROGRAM.unpack_from(data, program_offset + index * entry_size) for index in range(count)
    ]
    loads = [segment for segment in segments if segment[0] == _LOAD]
    interpreter = None
    needed: list[int] = []
    strings = None
    for kind, _, offset, _, _, size, _, _ in segments:
        if kind == _INTERPRETER:
            interpreter = _text(data, offset)
        elif kind == _DYNAMIC_SEGMENT:
            for tag, value in _DYNAMIC.iter_unpack(data[offset : offset + size // 16 * 16]):
                if tag == 0:
                    break
                if tag == _NEEDED:
                    needed.append(value)
                elif tag == _STRTAB:
                    strings = _file_offset(loads, value)
    if needed and strings is None:
        raise ValueError("no string table")
    return Needs(interpreter, tuple(_text(data, (strings or 0) + value) for value in needed))


def _file_offset(loads: list[tuple[int, ...]], address: int) -> int:
    for _, _, offset, start, _, size, _, _ in loads:
        if start <= address < start + size:
            return address - start + offset
    raise ValueError(f"no segment holds the address {address:#x}")


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
