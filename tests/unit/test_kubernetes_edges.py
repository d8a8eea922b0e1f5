"""The agent's edges: files, kubeconfigs, tokens, and servers that answer badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.kubernetes import asking, credentials, files, manifests, report
from appliance.kubernetes.asking import AwayError, Supervisor
from appliance.kubernetes.engine import Outcome
from appliance.kubernetes.errors import KubernetesError, SupervisorError
from appliance.kubernetes.fetching import (
    Sealed,
    left_by_servers,
    one_cluster,
    opened,
    server_url_of,
    which_cluster,
)
from appliance.kubernetes.files import FileTroubleError
from appliance.kubernetes.keeper import Machine, Unit, UnitFacts, Wanted
from appliance.kubernetes.kubeconfig import (
    Kubeconfig,
    kubeconfig_text,
    pack,
    read_kubeconfig,
    unpack,
)
from appliance.kubernetes.operator_box import open_as_operator, seal_for_operator
from appliance.kubernetes.part import Kind, Part
from appliance.kubernetes.reporting import Turn, report_of
from appliance.kubernetes.serving import KubeFacts
from appliance.kubernetes.status_words import show, words
from appliance.ledger.entry import Entry
from appliance.ledger.secrets import check_name
from appliance.problem import Problem
from provisioning.clusters import CLUSTER_LABEL
from provisioning.keys import id_text
from provisioning.membership import Member
from skerry.errors import UsageError
from tests.fakes.cluster_world import ADMIN, KEY, NETWORK, PEM, ROOT, SEED, SERVER_TOKEN


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Files


def test_a_file_is_whole_private_and_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep/config.yaml"
    files.write(path, b"one")
    files.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_can_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    files.write(path, b"one")
    (tmp_path / ".config.yaml.new").mkdir()
    with pytest.raises(FileTroubleError, match="can't be written"):
        files.write(path, b"two")
    assert path.read_bytes() == b"one"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    files.write(path, b"one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileTroubleError, match="No space left"):
        files.write(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_the_new_file_leads_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".config.yaml.new").symlink_to(victim)
    files.write(tmp_path / "config.yaml", b"secret")
    assert victim.read_text() == "untouched"


def test_what_is_set_aside_is_kept_but_no_more_than_the_latest(tmp_path: Path) -> None:
    mine = tmp_path / "server.replaced-by-hand"
    mine.mkdir()
    for number in (1, 2, 3, 4):
        (tmp_path / "server").mkdir()
        (tmp_path / "server/state").write_text(str(number))
        assert files.set_aside(tmp_path / "server") == tmp_path / f"server.replaced-{number}"
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {mine.name, "server.replaced-3", "server.replaced-4"}
    assert (tmp_path / "server.replaced-3/state").read_text() == "3"
    with pytest.raises(FileTroubleError):
        files.set_aside(tmp_path / "server")
    assert {path.name for path in tmp_path.iterdir()} == kept


# Manifests, tokens, kubeconfigs


def test_manifests_are_filled_in_and_unknown_places_are_named() -> None:
    known = {"CLUSTER_DNS": "10.96.0.10"}
    text = "a: @CLUSTER_DNS@\nb: someone@example.org @x@\n"
    assert manifests.fill("x", text, known) == text.replace("@CLUSTER_DNS@", "10.96.0.10")
    with pytest.raises(KubernetesError, match="@NONSENSE@"):
        manifests.fill("x", "@NONSENSE@", known)


def test_a_token_is_read_and_never_shown() -> None:
    token = credentials.read_token(f"{SERVER_TOKEN}\n", "it")
    assert token.text == SERVER_TOKEN
    assert token.secret not in repr(token)
    assert credentials.agent_token(token, "s" * 64).endswith(f"::node:{'s' * 64}")
    for wrong in ("", "secret", "K10::server:x", SERVER_TOKEN[:-30], SERVER_TOKEN + "\nK10"):
        with pytest.raises(KubernetesError) as caught:
            credentials.read_token(wrong, "the file")
        assert wrong not in str(caught.value) or not wrong


def test_a_kubeconfig_comes_back_in_every_form(tmp_path: Path) -> None:
    text = kubeconfig_text(ADMIN, "skerry")
    assert read_kubeconfig(text, "it") == ADMIN
    assert unpack(pack(ADMIN), "it") == ADMIN
    assert KEY not in repr(ADMIN)
    for name, content in (("ca", PEM), ("cert", PEM), ("key", KEY)):
        (tmp_path / name).write_text(content)
    by_name = (
        f"server: https://127.0.0.1:6443\ncertificate-authority: {tmp_path}/ca\n"
        f"client-certificate: {tmp_path}/cert\nclient-key: {tmp_path}/key\n"
    )
    assert read_kubeconfig(by_name, "it") == ADMIN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "server: https://127.0.0.1\n",
        kubeconfig_text(ADMIN, "a") + kubeconfig_text(ADMIN, "b"),
        kubeconfig_text(ADMIN, "a").replace("https", "http"),
        kubeconfig_text(ADMIN, "a").replace("certificate-authority-data: ", "x: "),
        kubeconfig_text(ADMIN, "a").replace("client-key-data: ", "client-key-data: %%"),
        "client-key: /nonexistent\n",
    ],
)
def test_what_is_no_kubeconfig_is_refused_in_words(text: str) -> None:
    with pytest.raises(KubernetesError):
        read_kubeconfig(text, "the file")


def test_an_injected_server_never_gets_into_a_kubeconfig() -> None:
    for server in (
        "https://x\n    insecure-skip-tls-verify: true",
        "file:///etc/passwd",
        "https://",
    ):
        with pytest.raises(KubernetesError):
            Kubeconfig(server, PEM, PEM, KEY)


def test_the_operators_box_opens_for_the_root_key_only() -> None:
    sealed = seal_for_operator(ROOT.hex(), NETWORK, ADMIN)
    assert open_as_operator(SEED, NETWORK, sealed, "it") == ADMIN
    with pytest.raises(KubernetesError, match="not sealed to"):
        open_as_operator(bytes(32), NETWORK, sealed, "it")
    with pytest.raises(KubernetesError, match="not sealed to"):
        open_as_operator(SEED, NETWORK, sealed[:-1] + b"\0", "it")
    for root in ("", "zz", ROOT.hex()[:-2], bytes(32).hex()):
        with pytest.raises(KubernetesError, match="root key"):
            seal_for_operator(root, NETWORK, ADMIN)


def test_a_server_that_seals_nonsense_does_not_stand_before_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sealed = seal_for_operator(ROOT.hex(), NETWORK, ADMIN)
    assert opened(SEED, NETWORK, [("liar", b"x"), ("honest", sealed)]) == {"honest": ADMIN}
    assert "passed over: what liar sealed" in capsys.readouterr().err
    with pytest.raises(KubernetesError, match="what liar sealed"):
        opened(SEED, NETWORK, [("liar", sealed[:-1] + b"\0")])
    assert opened(SEED, NETWORK, []) == {}


def test_servers_that_disagree_on_the_authority_are_named() -> None:
    assert one_cluster({"a": ADMIN, "b": ADMIN}, "home") == ADMIN
    other = Kubeconfig(ADMIN.server, PEM + PEM, PEM, KEY)
    with pytest.raises(KubernetesError, match="a, b"):
        one_cluster({"b": ADMIN, "a": other}, "home")
    with pytest.raises(KubernetesError, match="no server"):
        one_cluster({}, "home")


def member_of(number: int, role: str, cluster: str = "") -> Member:
    return Member(
        bytes([number]) * 16,
        bytes(32),
        bytes(32),
        f"n{number}",
        frozenset({role}),
        {CLUSTER_LABEL: cluster} if cluster else {},
        bytes(16),
        None,
        0,
    )


def left_by(number: int, stamp: int, key: str = "{}/kubeconfig") -> Entry:
    owner = bytes([number]) * 16
    named = key.format(id_text(owner))
    value = bytes([number])
    return Entry(
        owner, 1, stamp, "cluster", named, value, None, deleted=False, entry_id=b"", record=b""
    )


def test_of_several_clusters_the_operator_says_which() -> None:
    """What was left by no member, or under another's id, counts for nothing."""
    members = [member_of(3, "auto"), member_of(4, "server", "blue")]
    entries = [left_by(3, 1), left_by(4, 2), left_by(5, 7), left_by(3, 8, "{}/plan")]
    entries.append(left_by(3, 6, id_text(bytes([4]) * 16) + "/kubeconfig"))
    left = left_by_servers(entries, members)
    assert left == (Sealed("n4", "blue", b"\4"), Sealed("n3", "", b"\3"))
    assert which_cluster(left, "blue") == "blue"
    assert which_cluster(left[:1], None) == "blue"
    assert which_cluster((), None) == ""
    with pytest.raises(UsageError, match="blue"):
        which_cluster(left, None)


def test_addresses_of_an_api() -> None:
    assert server_url_of("10.0.0.1") == "https://10.0.0.1:6443"
    assert server_url_of("fd00::1") == "https://[fd00::1]:6443"
    assert server_url_of("[fd00::1]:443") == "https://[fd00::1]:443"
    assert server_url_of("Home.example.org:443") == "https://home.example.org:443"
    for wrong in ("", "a b", "x:0", "x:99999", "https://a/b", "x\ny"):
        with pytest.raises(UsageError):
            server_url_of(wrong)


# The report


def test_a_report_is_read_however_many_nodes_and_problems_somebody_makes() -> None:
    """A member with a kubelet's certificate may register Nodes without end."""
    nodes = {f"{number:0250}": False for number in range(3000)} | {"home": True}
    nodes |= {f"n{number}": False for number in range(5000)}
    problems = tuple(Problem("pod-range-conflict", f"{one} {'x' * 400}", "") for one in range(2000))
    part, nothing = Part(Kind.NONE, "it"), UnitFacts(Unit.MISSING)
    turn = Turn(
        part,
        Wanted(part, None, None),
        None,
        None,
        Outcome(Machine(nothing, nothing)),
        KubeFacts(nodes=nodes),
        0,
        problems,
    )
    made = report_of(turn)
    assert len(report.text(made)) < report.STATUS_MAX
    assert (made.nodes or {})["home"]
    assert made.problems[0] == problems[0]
    assert made.problems[-1].message == "there are 1937 more problems"


def test_what_is_shown_holds_nothing_that_moves_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {"code": "x", "message": "\x1b[2J", "hint": "\r\n"}
    path = tmp_path / "status.json"
    path.write_text(json.dumps({"state": "degraded", "problems": [problem]}))
    assert show(path, as_json=False) == 1
    assert "\x1b" not in capsys.readouterr().out
    assert "READY" not in "\n".join(words({}))
    path.write_text("[]")
    with pytest.raises(KubernetesError, match="is no report"):
        show(path, as_json=True)
    path.unlink()
    with pytest.raises(KubernetesError, match="does not run"):
        show(path, as_json=True)


# A supervisor that answers badly


@contextlib.asynccontextmanager
async def answering(path: Path, answer: bytes, *, hold: bool = False) -> AsyncIterator[None]:
    over, served = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if hold:
                await over.wait()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        served.set()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield
    finally:
        over.set()
        server.close()
        await served.wait()
        await server.wait_closed()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", AwayError),
        (b"HTTP/1.1", AwayError),
        (b"garbage\r\n\r\n", SupervisorError),
        (b"HTTP/1.1 five\r\n\r\n{}", SupervisorError),
        (b"HTTP/1.1 500 No\r\n\r\n<html>", SupervisorError),
        (b"HTTP/1.1 500 No\r\n\r\n" + b"[" * 100_000, SupervisorError),
        (b"x" * 200_000, AwayError),
    ],
)
async def test_bad_answers_are_errors_in_words(
    tmp_path: Path, answer: bytes, kind: type[Exception]
) -> None:
    async with answering(tmp_path / "s", answer):
        with pytest.raises(kind):
            await Supervisor(tmp_path / "s", seconds=2).get("/v1/cluster")


@pytest.mark.anyio
async def test_a_supervisor_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", b"HTTP/1.1 200 OK\r\n\r\n{", hold=True):
        with pytest.raises(AwayError):
            await Supervisor(tmp_path / "s", seconds=0.05).get("/v1/cluster")


@pytest.mark.anyio
async def test_an_answer_without_end_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_MAX", 1000)
    async with answering(tmp_path / "s", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000):
        with pytest.raises(SupervisorError, match="more than 1000 bytes"):
            await Supervisor(tmp_path / "s").get("/v1/cluster")


@pytest.mark.anyio
async def test_nobody_there_and_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(AwayError):
        await Supervisor(tmp_path / "s").get("/v1/cluster")
    body = json.dumps({"error": "no such key", "hint": "look"}).encode()
    async with answering(tmp_path / "s", b"HTTP/1.1 404 Not Found\r\n\r\n" + body):
        with pytest.raises(SupervisorError, match="no such key") as caught:
            await Supervisor(tmp_path / "s").get("/v1/cluster")
    assert caught.value.status == 404
    assert caught.value.hint == "look"


def test_a_secrets_name_is_one_whatever_its_cluster_is_called() -> None:
    names = [credentials.stored_as("cluster-agent-token", one) for one in ("", "blue", "b" * 63)]
    assert names[:2] == ["cluster-agent-token", "cluster-agent-token.blue"]
    names += [
        credentials.stored_as("cluster-server-token", one) for one in ("A/b", "a.", "-", "\u00fc")
    ]
    assert [check_name(one) for one in names] == names
    assert len(set(names)) == len(names)


def test_what_was_written_has_its_name_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "roles"
    synced: list[tuple[bool, bool]] = []

    def sync(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    files.write(path, b"a promise")
    assert synced == [(False, False), (True, True)]
