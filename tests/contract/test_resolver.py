"""The node's DNS server on real sockets, asked by a client that shares nothing with it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from appliance.config import SupervisorConfig
from appliance.lifecycle import State
from appliance.names import server
from appliance.names.ranges import HOST, NamesError, Ranges
from appliance.names.server import CONNECTIONS, Resolver
from appliance.names.wire import Rcode, Type
from appliance.names.zone import NodeName, Zone, zone_of
from tests.fakes.dns import Answer, query, read
from tests.fakes.overlay import FakeOverlay
from tests.unit.test_supervisor import running, token_text

RANGES = Ranges(ipaddress.IPv4Network("10.10.0.0/16"), ipaddress.IPv6Network("fd00::/48"))
ZONE = zone_of([NodeName(bytes(16), "attic", ipaddress.IPv4Address("10.10.0.2"), None)], RANGES)
NAME = "attic.skerry.internal"
SECONDS = 10.0

Scenario = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Run a scenario on each of the two event loops."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def runner(scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(asyncio.wait_for(scenario(), 30))

    return runner


@asynccontextmanager
async def serving(table: Callable[[], Zone | None] = lambda: ZONE) -> AsyncIterator[Resolver]:
    resolver = Resolver(table, port=0)
    for _ in range(10):  # the UDP port that the kernel chose may be somebody's TCP port
        try:
            await resolver.start()
            break
        except NamesError:
            resolver = Resolver(table, port=0)
    try:
        yield resolver
    finally:
        await resolver.stop()


async def in_thread(call: Callable[[], bytes]) -> Answer:
    return read(await asyncio.get_running_loop().run_in_executor(None, call))


def udp(address: tuple[str, int], data: bytes, *, seconds: float = SECONDS) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(seconds)
        asker.connect(address)  # so that an answer from elsewhere would not be seen
        asker.send(data)
        return asker.recv(65535)


def exactly(asker: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = asker.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def tcp(address: tuple[str, int], *messages: bytes) -> list[bytes]:
    with socket.create_connection(address, timeout=SECONDS) as asker:
        asker.sendall(b"".join(len(one).to_bytes(2) + one for one in messages))
        return [exactly(asker, int.from_bytes(exactly(asker, 2))) for _ in messages]


def test_both_ways_of_asking(run: Callable[[Scenario], None]) -> None:
    async def scenario() -> None:
        async with serving() as resolver:
            said = await in_thread(lambda: udp(resolver.address, query(NAME)))
            assert [one.data for one in said.answers] == [bytes((10, 10, 0, 2))]
            both = await asyncio.to_thread(
                tcp, resolver.address, query(NAME), query("2.0.10.10.in-addr.arpa", Type.PTR)
            )
            assert read(both[0]).answers[0].data == bytes((10, 10, 0, 2))
            back = read(both[1])
            assert back.name_at(back.answers[0].place) == NAME

    run(scenario)


def test_a_name_that_moves_is_answered_anew(run: Callable[[Scenario], None]) -> None:
    zones = [ZONE, zone_of([], RANGES)]

    async def scenario() -> None:
        async with serving(lambda: zones[0]) as resolver:
            assert (await in_thread(lambda: udp(resolver.address, query(NAME)))).answers
            zones.pop(0)
            said = await in_thread(lambda: udp(resolver.address, query(NAME)))
            assert said.rcode == Rcode.NXDOMAIN

    run(scenario)


def test_it_listens_on_loopback_and_on_nothing_else(run: Callable[[Scenario], None]) -> None:
    async def scenario() -> None:
        async with serving() as resolver:
            host, port = resolver.address
            assert host == HOST
            for elsewhere in ("127.0.0.1", "127.0.0.53"):
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.to_thread(udp, (elsewhere, port), query(NAME))
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.to_thread(tcp, (elsewhere, port), query(NAME))

    run(scenario)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::1", "127.example.org", ""])  # noqa: S104
def test_another_address_is_refused(host: str) -> None:
    with pytest.raises(NamesError, match="loopback"):
        Resolver(lambda: ZONE, host=host)


def test_a_port_that_is_taken_is_named_and_leaves_nothing_open(
    run: Callable[[Scenario], None],
) -> None:
    async def scenario() -> None:
        async with serving() as first:
            second = Resolver(lambda: ZONE, port=first.address[1])
            with pytest.raises(NamesError, match=str(first.address[1])):
                await second.start()
            await second.stop()
            await first.stop()
            await second.start()
            assert (await in_thread(lambda: udp(second.address, query(NAME)))).answers
            await second.stop()

    run(scenario)


def test_a_flood_and_rubbish_leave_it_answering(run: Callable[[Scenario], None]) -> None:
    async def scenario() -> None:
        async with serving() as resolver:

            def flood() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                    for number in range(5000):
                        asker.sendto(struct.pack(">Q", number) * (number % 60), resolver.address)

            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            def insist() -> bytes:
                # What comes on top of a full buffer is lost: askers ask again, as this one does.
                for _ in range(40):
                    with suppress(TimeoutError):
                        return udp(resolver.address, query(NAME), seconds=0.5)
                raise TimeoutError

            counting = asyncio.create_task(count())
            await asyncio.to_thread(flood)
            said = await in_thread(insist)
            counting.cancel()
            assert said.answers
            # The loop turned to others in between, not only when the flood was over.
            assert turns > 20

    run(scenario)


def test_idle_connections_keep_nobody_out_for_long(
    run: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)

    async def scenario() -> None:
        async with serving() as resolver:
            idle = [
                socket.create_connection(resolver.address, timeout=SECONDS)
                for _ in range(CONNECTIONS + 4)
            ]
            said = await in_thread(lambda: udp(resolver.address, query(NAME)))
            assert said.answers
            for one in idle:  # each was hung up on: as one too many, or as one that said nothing
                assert await asyncio.to_thread(one.recv, 1) == b""
                one.close()
            # Who asks is answered again, however slowly it asks.
            monkeypatch.setattr(server, "IDLE_SECONDS", SECONDS)
            (answer,) = await asyncio.to_thread(tcp, resolver.address, query(NAME))
            assert read(answer).answers

    run(scenario)


def test_half_a_question_is_not_waited_for(
    run: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)

    async def scenario() -> None:
        async with serving() as resolver:
            with socket.create_connection(resolver.address, timeout=SECONDS) as asker:
                asker.sendall(b"\xff\xff" + query(NAME))
                assert await asyncio.to_thread(asker.recv, 1) == b""

    run(scenario)


def test_before_anything_is_known_that_is_said(run: Callable[[Scenario], None]) -> None:
    async def scenario() -> None:
        async with serving(lambda: None) as resolver:
            said = await in_thread(lambda: udp(resolver.address, query(NAME)))
            assert said.rcode == Rcode.SERVFAIL

    run(scenario)


def test_a_defect_is_said_to_the_asker_and_once_to_the_journal(
    run: Callable[[Scenario], None], caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Zone:
        raise RuntimeError("a defect")

    async def scenario() -> None:
        async with serving(broken) as resolver:
            for _ in range(3):
                said = await in_thread(lambda: udp(resolver.address, query(NAME)))
                assert said.rcode == Rcode.SERVFAIL

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert [one.message for one in caplog.records] == [
        "a defect while answering a question about a name"
    ]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


class NamingOverlay(FakeOverlay):
    """Two members; this one is called otherwise than in its certificate."""

    def names(self) -> tuple[NodeName, ...]:
        return (
            NodeName(bytes(16), self.name, ipaddress.IPv4Address("10.10.0.1"), None),
            NodeName(b"\1" * 16, "node-2", ipaddress.IPv4Address("10.10.0.2"), None),
        )


def test_a_supervisor_serves_its_members_and_names_its_machine(
    run: Callable[[Scenario], None], tmp_path: Path
) -> None:
    overlay = NamingOverlay(name="cellar")
    config = SupervisorConfig(
        state_dir=tmp_path / "state", run_dir=tmp_path / "run", names_port=free_port(), name="attic"
    )

    async def scenario() -> None:
        async with running(config, overlay=overlay) as lab:
            await lab.ask("POST", "/v1/token", token_text().encode())
            await lab.state(State.READY)
            address = HOST, config.names_port or 0
            await lab.until(lambda: (config.run_dir / "hostname").read_text() == "cellar\n")
            for name, data in {"cellar": (10, 10, 0, 1), "node-2": (10, 10, 0, 2)}.items():
                asked = query(f"{name}.skerry.internal")
                said = await in_thread(lambda asked=asked: udp(address, asked))  # type: ignore[misc]
                assert [one.data for one in said.answers] == [bytes(data)]
        with pytest.raises(ConnectionRefusedError):
            udp(address, query("cellar.skerry.internal"))

    run(scenario)
    assert (config.run_dir / "names-ranges").read_text().startswith("10.10.0.0/16\nfd")


def test_beside_a_nodes_supervisor_names_are_served_only_if_told() -> None:
    assert SupervisorConfig(run_dir=Path("/tmp/else")).resolver_port is None
    assert SupervisorConfig().resolver_port == server.PORT
