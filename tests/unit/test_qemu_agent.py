"""The lab agent's framing, and both of its ends talking over a socket pair."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu import agent
from qemu.agent import AgentClient, Result
from qemu.errors import AgentError, CommandError, WaitTimeoutError
from qemu.guest_agent import LONGEST_PAYLOAD, Channel, Fields, FrameDecoder, encode_frame


def test_a_frame_comes_back_whole_and_in_pieces() -> None:
    frame = encode_frame({"op": "out", "id": "x"}, b"\n\x00\xff")
    assert FrameDecoder().feed(frame) == [({"op": "out", "id": "x"}, b"\n\x00\xff")]
    decoder = FrameDecoder()
    found = [one for byte in frame for one in decoder.feed(bytes([byte]))]
    assert found == [({"op": "out", "id": "x"}, b"\n\x00\xff")]


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(1, 7))
def test_frames_are_found_after_any_rubbish(rubbish: bytes, body: bytes, piece: int) -> None:
    stream = rubbish + encode_frame({"op": "a"}, body) + encode_frame({"op": "b"})
    decoder = FrameDecoder()
    found: list[tuple[Fields, bytes]] = []
    for start in range(0, len(stream), piece):
        found += decoder.feed(stream[start : start + piece])
    assert found[-2:] == [({"op": "a"}, body), ({"op": "b"}, b"")]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_loses_one_frame_and_no_more(position: int, bit: int) -> None:
    frame = bytearray(encode_frame({"op": "a"}, b"payload"))
    frame[position % len(frame)] ^= 1 << bit
    decoder = FrameDecoder()
    # A length that grew swallows what follows until it can be checked; that is bounded.
    found = decoder.feed(bytes(frame) + encode_frame({"op": "b"}) * 3 + bytes(LONGEST_PAYLOAD))
    assert [fields for fields, _ in found] == [{"op": "b"}] * 3


@given(st.binary(max_size=2000))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    FrameDecoder().feed(data)


def test_a_payload_that_is_no_object_is_passed_over() -> None:
    import struct
    import zlib

    payload = b"[1]\nx"
    bad = struct.pack(">4sII", b"\xf5SkL", len(payload), zlib.crc32(payload)) + payload
    assert FrameDecoder().feed(bad + encode_frame({"op": "b"})) == [({"op": "b"}, b"")]


def test_a_frame_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode_frame({}, bytes(LONGEST_PAYLOAD))


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Path]:
    """A unix socket with the guest's agent behind it, as QEMU's chardev is."""
    path = tmp_path / "agent0"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def guest() -> None:
        connection, _ = server.accept()
        with connection:
            Channel(connection.fileno()).serve(once=True)

    thread = threading.Thread(target=guest)
    thread.start()
    yield path
    thread.join(30)
    server.close()


@pytest.fixture
def client(port: Path) -> Iterator[AgentClient]:
    client = AgentClient([port])
    client.wait_ready(timeout=30)
    yield client
    client.close()


def test_a_command_gives_status_and_both_streams(client: AgentClient) -> None:
    result = client.run("echo out; echo err >&2; exit 3", timeout=30)
    assert (result.exit_status, result.stdout, result.stderr) == (3, "out\n", "err\n")
    with pytest.raises(CommandError, match="ended with 3: err"):
        result.check()


def test_input_reaches_the_command_unchanged(client: AgentClient) -> None:
    data = bytes(range(256)) * 1000
    assert client.run_bytes(["cat"], stdin=data, timeout=30) == (0, data, b"")


def test_commands_run_side_by_side(client: AgentClient) -> None:
    waiting = client.start(["cat"])
    assert client.run(["echo", "meanwhile"], timeout=30).stdout == "meanwhile\n"
    waiting.write(b"later")
    waiting.end_input()
    assert waiting.wait(timeout=30) == (0, b"later", b"")


def test_a_terminal_is_one_and_has_the_given_size(client: AgentClient) -> None:
    job = client.start(["/bin/sh", "-c", "test -t 0 && stty size"], tty=(33, 77))
    assert job.wait(timeout=30)[:2] == (0, b"33 77\r\n")


def test_a_missing_program_is_an_error_that_names_it(client: AgentClient) -> None:
    with pytest.raises(AgentError, match="/no/such/program"):
        client.run(["/no/such/program"], timeout=30)


def test_a_command_that_hangs_is_killed(client: AgentClient) -> None:
    job = client.start(["sleep", "100"])
    with pytest.raises(WaitTimeoutError, match="did not end"):
        job.wait(timeout=0.01)
    # Its end is reported all the same: the group got SIGKILL.
    assert job.next(5) == -9


def test_requests_of_another_session_are_ignored(client: AgentClient) -> None:
    hello = client.hello
    assert hello is not None
    fields: Fields = {"op": "start", "id": "stale", "session": "old", "argv": ["false"]}
    client._socket.sendall(encode_frame(fields))
    assert client.run(["true"], timeout=30).exit_status == 0


@pytest.mark.usefixtures("client")
def test_a_taken_channel_is_left_alone(port: Path) -> None:
    with pytest.raises(AgentError, match="in use"):
        AgentClient([port])


def test_nobody_behind_the_socket(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="no machine"):
        AgentClient([tmp_path / "agent0"])


class _FakeGuest:
    """The far end of a port, in the test's own hands."""

    def __init__(self, directory: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(directory / "agent0"))
        self._server.listen()
        self.client = AgentClient([directory / "agent0"])
        self._connection, _ = self._server.accept()

    def hello(self, session: str, boot: str) -> None:
        fields: Fields = {"op": "hello", "session": session, "boot_id": boot, "uptime": 1.5}
        self._connection.sendall(encode_frame(fields))

    def end(self) -> None:
        self._connection.close()
        self.client.close()
        self._server.close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[_FakeGuest]:
    guest = _FakeGuest(tmp_path)
    yield guest
    guest.end()


def test_a_restarted_guest_ends_what_ran_in_it(fake: _FakeGuest) -> None:
    fake.hello("s1", "boot1")
    assert fake.client.wait_ready(timeout=30).boot_id == "boot1"
    job = fake.client.start(["sleep", "9"])
    fake.hello("s2", "boot2")
    with pytest.raises(AgentError, match="restarted"):
        job.wait(timeout=30)
    assert fake.client.wait_ready(timeout=30, other_than="boot1").session == "s2"


def test_the_end_of_the_machine_ends_what_ran_in_it(fake: _FakeGuest) -> None:
    fake.hello("s1", "boot1")
    fake.client.wait_ready(timeout=30)
    job = fake.client.start(["sleep", "9"])
    fake._connection.close()
    with pytest.raises(AgentError, match="has ended"):
        job.wait(timeout=30)
    with pytest.raises(AgentError):
        fake.client.run(["true"])


def test_nothing_is_sent_before_the_guest_spoke(fake: _FakeGuest) -> None:
    with pytest.raises(AgentError, match="not there"):
        fake.client.start(["true"])
    with pytest.raises(WaitTimeoutError, match="silent"):
        fake.client.wait_ready(timeout=0)


def test_an_empty_queue_is_told_apart_from_an_end(client: AgentClient) -> None:
    job = client.start(["cat"])
    with pytest.raises(queue.Empty):
        job.next(0)
    job.end_input()
    assert job.next(5) == 0


def test_the_agent_comes_by_credentials_short_enough_for_fw_cfg() -> None:
    names = agent.credentials()
    assert all(len("opt/io.systemd.credentials/" + name) <= 55 for name in names)
    assert b"ImportCredential=lab.agent" in names["systemd.extra-unit.x.service"]
    assert b"Wants=x.service" in names["systemd.unit-dropin.-.slice"]
    assert names["lab.agent"].startswith(b'"""The lab agent')


def test_a_good_result_is_returned_by_check() -> None:
    result = Result("true", 0, "", "")
    assert result.check() is result
