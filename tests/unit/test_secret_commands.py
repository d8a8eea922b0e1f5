"""``skerry secret`` and its routes: a real socket, a real ledger of two servers and an agent."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from appliance.api.client import ApiError, call
from appliance.api.openapi import description
from appliance.api.secrets import secret_routes
from appliance.api.server import Peer
from appliance.ledger.gossip import Action, Changed, Gossip, GossipConfig
from appliance.ledger.keeper import Keeper
from appliance.ledger.secrets import SECRET, VALUE_MAX
from appliance.ledger.timekeeper import Timekeeper
from appliance.ledger.vault import PAUSE_SECONDS, Vault
from skerry.__main__ import main
from tests.fakes.ledger import NOW, Node, entry, node, replica, revocation, seed, writer
from tests.fakes.served import served

SERVER = node(1, roles=("server",), by=1)
OTHER = node(2, roles=("server",), by=1)
AGENT = node(4, roles=("agent",), by=4)
NODES = [SERVER, OTHER, AGENT]
VALUE = b"correct horse battery"


@dataclass
class Here:
    """One node's secrets; what it writes goes to the disk at once, and to nobody."""

    vault: Vault
    gossip: Gossip
    mono: float = 0.0
    provided: list[Vault] = field(default_factory=list)

    def hear(self, of: Node, value: bytes = b"", *, revoked: bool = False) -> None:
        one = revocation(of) if revoked else entry(of, SECRET, "k", value)
        for change in self.gossip.replica.apply(one, NOW).changes:
            self.vault.changed(change)


def here_at(me: Node) -> Here:
    keeper = Timekeeper(NOW - 10**10, 0, 0.0)
    keeper.wall(NOW, synced=True, mono=0.0)
    copy = replica(NODES)
    gossip = Gossip(writer(me, copy), keeper, Random(1), 0.0, GossipConfig(swim=None))  # noqa: S311
    here: Here

    def perform(actions: list[Action]) -> None:
        for one in actions:
            if isinstance(one, Changed):
                here.vault.changed(one.change)

    vault = Vault(
        Keeper(copy, own=me.node_id, wg_private=seed("wg", me.number), mono=0.0),
        gossip,
        lambda: here.mono,
        lambda: copy.directory,
        perform,
    )
    here = Here(vault, gossip)
    here.provided.append(vault)
    vault.work()
    return here


@pytest.fixture
def here() -> Here:
    return here_at(SERVER)


@pytest.fixture
def socket(here: Here, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "api.sock"
    routes = secret_routes(lambda: here.provided[0] if here.provided else None)
    with served(routes, path):
        yield path


@pytest.fixture
def skerry(
    socket: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Runner:
    return Runner(socket, monkeypatch, capfdbinary)


@dataclass
class Runner:
    socket: Path
    monkeypatch: pytest.MonkeyPatch
    captured: pytest.CaptureFixture[bytes]

    def __call__(self, *words: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        stream = io.TextIOWrapper(io.BytesIO(stdin))
        self.monkeypatch.setattr(sys, "stdin", stream)
        action, *rest = words
        status = main(["secret", action, "--socket", str(self.socket), *rest])
        out, err = self.captured.readouterr()
        return status, out, err.decode()


def test_put_get_ls_rm(skerry: Runner, tmp_path: Path) -> None:
    status, _, said = skerry("put", "k3s.token", "-", stdin=VALUE)
    assert (status, said) == (0, "k3s.token, generation 1, for server\n")
    assert skerry("get", "k3s.token")[1] == VALUE
    binary = tmp_path / "key"
    binary.write_bytes(bytes(range(256)))
    status, _, said = skerry("put", "k3s.token", f"@{binary}", "--role", "agent")
    assert (status, said) == (0, "k3s.token, generation 2, for agent, server\n")
    assert skerry("get", "k3s.token")[1] == bytes(range(256))
    status, out, said = skerry("ls")
    assert (status, said) == (0, "")
    assert out.decode().splitlines() == [
        "secret     generation  for            written           by  remarks",
        "k3s.token  2           agent, server  2026-11-18 11:06  n1",
    ]
    assert skerry("rm", "k3s.token")[0] == 0
    assert json.loads(skerry("ls", "--json")[1]) == {"secrets": []}
    status, out, said = skerry("get", "k3s.token")
    assert (status, out) == (1, b"")
    assert said.startswith("skerry: this node does not hold the secret k3s.token\n")


def test_what_is_exposed_is_said_with_the_way_out(skerry: Runner, here: Here) -> None:
    skerry("put", "k3s", "-", stdin=VALUE)
    here.hear(OTHER, revoked=True)
    assert here.vault.next_timer() == pytest.approx(PAUSE_SECONDS)
    here.vault.work()
    out, said = skerry("ls")[1:]
    assert out.decode().splitlines()[1].endswith("n1  exposed")
    assert "skerry secret put NAME -" in said
    assert here.vault.exposed() == {"k3s"}
    skerry("put", "k3s", "-", stdin=b"another")
    assert here.vault.exposed() == frozenset()
    assert skerry("ls")[2] == ""


def test_what_lives_by_a_secret_hears_once_that_it_is_exposed(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[frozenset[str]] = []
    here.vault._on_exposed = heard.append
    here.vault.put("k3s", VALUE, [])
    here.hear(OTHER, revoked=True)
    for _ in range(3):
        here.vault.work()
    assert heard == [{"k3s"}]
    lines = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "skerry secret put k3s -" in lines[0]
    here.vault.put("k3s", b"another", [])
    here.vault.work()
    assert len(heard) == 1


def test_a_value_never_stands_in_the_call(skerry: Runner) -> None:
    status, out, said = skerry("put", "k3s", VALUE.decode())
    assert (status, out) == (2, b"")
    assert "correct" not in said
    assert "use - for stdin, or @FILE" in said


@pytest.mark.parametrize(
    ("words", "stdin", "status", "part"),
    [
        (("put", "k3s", "-"), bytes(VALUE_MAX + 1), 2, "more than 3072 bytes"),
        (("put", "k3s", "@/does/not/exist"), b"", 2, "cannot be read as a value"),
        (("put", "K3S", "-"), b"x", 1, "cannot be the name of a secret"),
        (("put", "../x", "-"), b"x", 1, "cannot be the name of a secret"),
        (("get", "a/b"), b"", 1, "cannot be the name of a secret"),
        (("rm", "nix"), b"", 1, "there is no secret nix"),
        (("rm", "\udcff"), b"", 1, ""),
    ],
)
def test_bad_calls_get_words(
    skerry: Runner, words: tuple[str, ...], stdin: bytes, status: int, part: str
) -> None:
    got, out, said = skerry(*words, stdin=stdin)
    assert (got, out) == (status, b"")
    assert part in said
    assert "Traceback" not in said


def test_without_a_network_there_are_none(skerry: Runner, here: Here) -> None:
    here.provided.clear()
    for words in (("ls",), ("get", "k"), ("rm", "k"), ("put", "k", "-")):
        status, _, said = skerry(*words, stdin=b"x")
        assert (status, "it is in no network yet" in said) == (1, True)


@pytest.mark.parametrize(
    ("me", "path", "part", "status"),
    [
        (AGENT, "/v1/secret/k", "this node's roles: agent", 403),
        (SERVER, "/v1/secret/k?roles=boss", "cannot be for the role 'boss'", 400),
        (SERVER, "/v1/secret/k?role=agent", "does not take 'role' in its query", 400),
    ],
)
def test_what_cannot_be_put(tmp_path: Path, me: Node, path: str, part: str, status: int) -> None:
    here, socket = here_at(me), tmp_path / "api.sock"
    with served(secret_routes(lambda: here.vault), socket):
        with pytest.raises(ApiError, match=part) as error:
            call("PUT", path, b"x", socket_path=socket)
        assert error.value.status == status
        assert call("GET", "/v1/secret", socket_path=socket) == {"secrets": []}


def test_values_are_for_root_and_the_supervisors_user_only(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of the group sees which there are, and can neither read, put nor end one."""
    here.vault.put("k3s", VALUE, ["server"])
    path = tmp_path / "api.sock"
    person = Peer(1, 4321, frozenset({642}))
    monkeypatch.setattr("appliance.api.server.peer_of", lambda _: person)
    with served(secret_routes(lambda: here.vault), path, own_uid=642, own_gid=642):
        assert call("GET", "/v1/secret", socket_path=path)["secrets"][0]["name"] == "k3s"
        for method in ("GET", "PUT", "DELETE"):
            with pytest.raises(ApiError, match="is for root and the supervisor's own user") as said:
                call(method, "/v1/secret/k3s", b"x", socket_path=path)
            assert said.value.status == 403
    assert here.vault.get("k3s").value == VALUE
    own = Peer(1, 642, frozenset({642}))
    monkeypatch.setattr("appliance.api.server.peer_of", lambda _: own)
    with served(secret_routes(lambda: here.vault), path, own_uid=642, own_gid=642):
        assert call("GET", "/v1/secret/k3s", socket_path=path)["value"] == VALUE.decode()


def test_no_value_gets_into_the_log(
    skerry: Runner, here: Here, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    skerry("put", "k3s", "-", stdin=VALUE)
    skerry("get", "k3s")

    def broken(name: str) -> None:
        raise RuntimeError(name)

    monkeypatch.setattr(here.vault, "get", broken)
    status, _, said = skerry("get", "k3s")
    assert (status, "a defect" in said) == (1, True)
    text = caplog.text + repr(here.vault.secrets()) + said
    assert "a defect" in caplog.text
    assert VALUE.decode() not in text


def test_a_put_waits_for_the_disk(here: Here) -> None:
    said: list[str] = []
    kept: list[list[Action]] = []
    here.vault._perform = kept.append
    notice = here.vault.put("k3s", VALUE, [])
    here.vault.when_stored(notice, lambda: said.append("stored"))
    assert not said
    for change in (one.change for part in kept for one in part if isinstance(one, Changed)):
        here.vault.changed(change)
    assert said == ["stored"]
    here.vault.when_stored(notice, lambda: said.append("at once"))
    assert said == ["stored", "at once"]


def test_the_routes_are_described() -> None:
    document = description(secret_routes(lambda: None))
    assert set(document["paths"]) == {"/v1/secret", "/v1/secret/{name}"}  # type: ignore[call-overload]
    json.dumps(document)
