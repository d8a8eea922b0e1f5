"""The switch between machines."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu.hub import LONGEST_FRAME, FrameSplitter, Shaper, StreamError, Switch

A, B, C = b"\x52\x54\x00\x00\x00\x0a", b"\x52\x54\x00\x00\x00\x0b", b"\x52\x54\x00\x00\x00\x0c"
EVERYBODY = b"\xff" * 6
MULTICAST = b"\x01\x00\x5e\x00\x00\xfb"


def frame(destination: bytes, source: bytes) -> bytes:
    return destination + source + b"\x08\x00payload"


def switch() -> Switch:
    it = Switch()
    for port in ("a", "b", "c"):
        it.plug(port)
    return it


def test_unknown_and_broadcast_go_everywhere_else() -> None:
    it = switch()
    assert it.forward("a", frame(B, A)) == ["b", "c"]
    assert it.forward("a", frame(EVERYBODY, A)) == ["b", "c"]
    assert it.forward("a", frame(MULTICAST, A)) == ["b", "c"]


def test_learned_addresses_get_their_frames_alone() -> None:
    it = switch()
    it.forward("b", frame(EVERYBODY, B))
    assert it.forward("a", frame(B, A)) == ["b"]
    assert it.forward("b", frame(A, B)) == ["a"]


def test_a_frame_does_not_go_back_where_it_came_from() -> None:
    it = switch()
    it.forward("a", frame(EVERYBODY, B))
    assert it.forward("a", frame(B, A)) == []


def test_a_machine_that_moves_is_found_again() -> None:
    it = switch()
    it.forward("b", frame(EVERYBODY, B))
    it.forward("c", frame(EVERYBODY, B))
    assert it.forward("a", frame(B, A)) == ["c"]


def test_an_unplugged_port_is_forgotten() -> None:
    it = switch()
    it.forward("b", frame(EVERYBODY, B))
    it.unplug("b")
    assert it.forward("a", frame(B, A)) == ["c"]


def test_a_multicast_sender_cannot_capture_the_group() -> None:
    it = switch()
    it.forward("b", frame(EVERYBODY, MULTICAST))
    assert it.forward("a", frame(MULTICAST, A)) == ["b", "c"]


def test_a_flood_of_addresses_does_not_grow_for_ever() -> None:
    it = switch()
    for number in range(5000):
        it.forward("a", frame(EVERYBODY, b"\x02" + number.to_bytes(5, "big")))
    assert len(it._where) <= 4096


@given(st.binary(max_size=13))
def test_runts_go_nowhere(data: bytes) -> None:
    assert switch().forward("a", data) == []


@given(st.lists(st.binary(max_size=80), max_size=6), st.integers(1, 9))
def test_frames_survive_any_cutting(frames: list[bytes], piece: int) -> None:
    stream = b"".join(len(one).to_bytes(4, "big") + one for one in frames)
    splitter = FrameSplitter()
    found: list[bytes] = []
    for start in range(0, len(stream), piece):
        found += splitter.feed(stream[start : start + piece])
    assert found == frames


def test_a_length_that_cannot_be_ends_the_port() -> None:
    with pytest.raises(StreamError):
        FrameSplitter().feed((LONGEST_FRAME + 1).to_bytes(4, "big"))


def test_the_shaper_loses_and_delays_as_told() -> None:
    assert Shaper().fate() == 0
    assert Shaper(loss=1).fate() is None
    shaper = Shaper(loss=0.25, delay=0.1, jitter=0.05, random=random.Random(7))  # noqa: S311 - a dice
    fates = [shaper.fate() for _ in range(2000)]
    assert 400 < fates.count(None) < 600
    kept = [fate for fate in fates if fate is not None]
    assert min(kept) >= 0.1
    assert max(kept) <= 0.15
