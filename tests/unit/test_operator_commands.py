"""The operator's commands, from the words typed to what a node holds and what is printed."""

from __future__ import annotations

import io
import ipaddress
import json
import sys
from functools import partial
from pathlib import Path

import pytest

from appliance.cluster import cluster_entries
from appliance.cluster.cluster_entries import Drained, Founded
from appliance.cluster.ranges import pack
from appliance.ledger import assigned
from appliance.ledger.claims import Claim, claim_value
from appliance.ledger.state import Verdict
from appliance.operator import publisher, shared
from appliance.operator.errors import PublishError
from appliance.operator.outbox import load_outbox
from appliance.operator.publisher import BATCH_BYTES, LocalPublisher
from appliance.operator.ssh import SshPublisher
from appliance.operator.visit import Visit
from appliance.operator.ways import choose
from provisioning import operator_files
from provisioning.operator_files import PassphraseCost, create_network
from provisioning.operator_grants import GRANTS_FILE, load_grants
from provisioning.settings import Settings
from provisioning.token import Token
from skerry.__main__ import main
from tests.fakes.ledger import entry, network, node
from tests.fakes.operator import LATER, ROOT, FakeNode, fake_node, make_directory

NODES = [node(number) for number in (1, 2, 3)]
A, B, C = NODES
RANGE = ipaddress.IPv4Network("10.10.0.0/16")
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("SKERRY_SOCKET", str(tmp_path / "nobody.sock"))
    monkeypatch.setattr(shared, "now_ms", lambda: LATER)
    monkeypatch.setattr("time.time", lambda: LATER / 1000)
    for module in ("node_handlers", "token_handlers"):
        monkeypatch.setattr(f"appliance.operator.{module}.now_ms", lambda: LATER)
    return make_directory(tmp_path / "skerry" / "networks" / "net0")


@pytest.fixture
def at(home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    assert home.is_dir()
    made = fake_node(NODES)
    monkeypatch.setattr(shared, "choose", lambda *_, **__: made)
    return made


def run(capsys: Captured, *words: str, status: int = 0) -> tuple[str, str]:
    found = main(words)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    assert found == status, output.err
    return output.out, output.err


def test_a_node_is_named_labelled_placed_and_listed(capsys: Captured, at: FakeNode) -> None:
    _, err = run(capsys, "node", "rename", A.text[:6], "kitchen")
    assert "is called kitchen: published through the fake node" in err
    out, _ = run(capsys, "node", "label", "kitchen", "site=attic", "rack=2", "--json")
    assert json.loads(out)["published"] == 1
    run(capsys, "node", "label", "kitchen", "rack-")
    run(capsys, "node", "address", "kitchen", "10.10.0.77")
    out, _ = run(capsys, "node", "ls")
    row = next(line for line in out.splitlines() if line.startswith("kitchen"))
    assert A.text in row
    assert "10.10.0.77 fixed" in row
    assert "site=attic" in row
    assert "rack" not in row
    _, err = run(capsys, "node", "rename", "kitchen", "kitchen")
    assert "nothing had to be published" in err
    run(capsys, "node", "address", "kitchen", "auto")
    assert not assigned.addresses(at.replica, LATER, RANGE)


def test_a_node_s_pod_range_is_fixed_shown_and_taken_back(capsys: Captured, at: FakeNode) -> None:
    assert run(capsys, "node", "range", A.text)[0] == "none\n"
    _, err = run(capsys, "node", "range", A.text[:6], "10.244.7.0/24")
    assert f"n1 ({A.text}) has the pod range 10.244.7.0/24: published" in err
    claim = Claim(A.node_id, pack(ipaddress.IPv4Network("10.244.7.0/24")), None)
    at.replica.apply(entry(A, "range", A.text, claim_value(claim), sequence=9), LATER)
    assert run(capsys, "node", "range", "n1")[0] == "10.244.7.0/24, fixed by the operator\n"
    out, _ = run(capsys, "node", "range", A.text, "--json")
    assert json.loads(out)["range"] == "10.244.7.0/24"
    out, _ = run(capsys, "node", "ls")
    row = next(line for line in out.splitlines() if A.text in line)
    assert "10.244.7.0/24 fixed" in row
    _, err = run(capsys, "node", "range", "n2", "10.244.7.0/24", status=1)
    assert "10.244.7.0/24 is taken by n1" in err
    run(capsys, "node", "range", "n1", "--auto")
    assert not at.replica.entries("assigned", LATER)
    run(capsys, "node", "range", "nobody", status=1)


def test_a_node_is_emptied_before_it_is_taken_out(
    capsys: Captured, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.is_dir()
    server = node(4, roles=("server",), by=4)
    at = fake_node([*NODES, server])
    monkeypatch.setattr(shared, "choose", lambda *_, **__: at)

    def leader_says(kind: str, said: Founded | Drained, after: int) -> None:
        key, value = cluster_entries.key_of(server.node_id, kind), cluster_entries.value_of(said)
        made = entry(server, "cluster", key, value, sequence=20 + after, ms=LATER + after)
        assert at.replica.apply(made, LATER).verdict is Verdict.ACCEPTED

    leader_says("founded", Founded(1, bytes(16), server.node_id), -2)
    leader_says("drained", Drained(1, ((B.node_id, 0),)), -1)
    # What was said before the order is of an earlier one.
    for _ in range(2):
        assert "is to be emptied" in run(capsys, "node", "drain", "n2")[1]
    for second, (pods, words) in enumerate(((3, "has 3 pods that have not gone"), (0, "no pods"))):
        leader_says("drained", Drained(1, ((B.node_id, pods),)), 1000 + second)
        assert words in run(capsys, "node", "drain", "n2")[1]
    run(capsys, "node", "drain", "n2", "--undo")
    assert not at.replica.entries("assigned", LATER)
    assert "the gentle way" in run(capsys, "node", "remove", "n2")[1]


def test_words_that_make_no_sense_change_nothing(capsys: Captured, at: FakeNode) -> None:
    for words, status in (
        (("node", "label", A.text, "nonsense"), 2),
        (("node", "label", A.text, "a=1", "a=2"), 2),
        (("node", "label", A.text, "=1"), 2),
        (("node", "label", A.text, "skerry.internal/x=1"), 1),
        (("node", "label", A.text, "a b=1"), 1),
        (("node", "address", A.text, "10.10.0.256"), 2),
        (("node", "address", A.text, "192.168.0.1"), 1),
        (("node", "range", A.text, "10.244.7.1/24"), 2),
        (("node", "range", A.text, "10.244.7.0/24", "--auto"), 2),
        (("node", "range", A.text, "10.244.0.0/16"), 1),
        (("node", "range", A.text, "10.0.7.0/24"), 1),
        (("node", "rename", A.text, "Kitchen!"), 1),
        (("node", "rename", "nobody", "kitchen"), 1),
        (("revoke", "node", A.text, "--reason", "x" * 300), 1),
        (("token", "rotate", "nobody"), 1),
    ):
        _, err = run(capsys, *words, status=status)
        assert "skerry: " in err
    assert not at.log


def test_a_node_is_revoked_with_a_warning_of_its_open_token(
    capsys: Captured, at: FakeNode, home: Path
) -> None:
    out, err = run(capsys, "revoke", "node", "n3", "--reason", "stolen", "--json")
    facts = json.loads(out)
    assert facts["epochs"] == [1]
    assert facts["epoch"] == operator_files.load_network(home).epoch == 1
    assert "still lets nodes in" in err
    out, _ = run(capsys, "node", "ls", "--all")
    assert out.splitlines()[-1].split() == [
        "n3",
        C.text,
        "-",
        "-",
        "-",
        "-",
        "-",
        "revoked:",
        "stolen",
    ]
    _, err = run(capsys, "revoke", "node", C.text)
    assert "out already" in err
    _, err = run(capsys, "node", "rename", C.text, "x", status=1)
    assert "final" in err
    _, err = run(capsys, "revoke", "node", "n3", status=1)
    assert "the node n3 is out for ever" in err
    assert at.replica.directory.member(C.node_id) is None


def test_the_node_that_is_asked_is_not_put_out_by_itself(capsys: Captured, at: FakeNode) -> None:
    at.node_id = A.text
    for words in (("revoke", "node", "n1"), ("node", "remove", "n1")):
        _, err = run(capsys, *words, status=1)
        assert "the very node" in err
    assert not at.log
    out, _ = run(capsys, "node", "remove", "n1", "--yes", "--json")
    assert json.loads(out)["epochs"] == []


def test_a_grant_is_revoked_only_if_one_means_it(
    capsys: Captured, at: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = assigned.closed_key(A.grant_id).split("/")[1]
    _, err = run(capsys, "revoke", "grant", text[:8], status=2)
    assert "3 node(s) go out with it, for ever: n1, n2, n3" in err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    run(capsys, "revoke", "grant", text[:8], status=1)
    assert not at.log
    monkeypatch.setattr("builtins.input", lambda _: "y")
    _, err = run(capsys, "revoke", "grant", text)
    assert "3 node(s) are out: n1, n2, n3; epoch 1 begins" in err
    assert len(at.replica.directory) == 0
    _, err = run(capsys, "revoke", "grant", text, "--yes")
    assert "revoked already" in err


def test_a_token_is_rotated_and_the_new_one_has_its_terms_and_the_epoch(
    capsys: Captured, at: FakeNode, home: Path
) -> None:
    out, _ = run(
        capsys, "token", "new", "--role", "agent", "--label", "a=b", "--count", "3", "--json"
    )
    old = json.loads(out)
    run(capsys, "revoke", "node", "n3")
    out, err = run(capsys, "token", "rotate", old["grant_id"][:6])
    token = Token.parse(out)
    assert "lets nobody new in" in err
    assert token.network.epoch == 1
    assert token.grant.roles == {"agent"}
    assert dict(token.grant.labels) == {"a": "b"}
    assert token.grant.count == 3
    assert token.grant.expires == old["expires"]
    assert assigned.closed_grants(at.replica, LATER) == {Token.parse(old["token"]).grant.grant_id}
    notes = load_grants(home)
    assert [one.replaces for one in notes] == [None, old["grant_id"]]
    assert "SKERRY" not in (home / GRANTS_FILE).read_text()
    out, _ = run(capsys, "token", "ls")
    states = {line.split()[0]: line.split()[-2] for line in out.splitlines()[1:]}
    assert states[old["grant_id"]] == "closed"
    assert sorted(states.values()) == ["closed", "open", "open"]
    _, err = run(capsys, "token", "rotate", status=1)
    assert "2 grants are open" in err


def test_a_token_of_another_network_is_none_of_this_one(
    capsys: Captured, at: FakeNode, home: Path
) -> None:
    other = create_network(home.parent / "other", "other", Settings())
    out, _ = run(capsys, "token", "new", "--network", "other")
    _, err = run(capsys, "token", "rotate", out.strip(), "--network", "net0", status=1)
    assert "another network (other)" in err
    assert other.name == "other"
    assert not at.log


def test_without_a_node_lists_say_what_is_unknown(capsys: Captured, home: Path) -> None:
    assert home.is_dir()
    run(capsys, "token", "new")
    out, err = run(capsys, "token", "ls")
    assert "is unknown" in err
    assert "? of any" in out
    assert "open?" in out
    out, _ = run(capsys, "token", "ls", "--json")
    assert json.loads(out)["grants"][0]["used"] is None
    _, err = run(capsys, "node", "ls", status=1)
    assert "--via" in err
    out, err = run(capsys, "token", "rotate", status=1)
    assert Token.parse(out).network.epoch == 0
    assert "not yet published" in err
    assert len(load_outbox(home, network()).pending) == 1
    _, err = run(capsys, "token", "ls")
    assert "1 statement(s) wait in the outbox" in err


def test_a_wrong_passphrase_signs_nothing(
    capsys: Captured, at: FakeNode, tmp_path: Path, home: Path
) -> None:
    sealed = home.parent / "sealed"
    create_network(sealed, "sealed", Settings(), passphrase="right", cost=PassphraseCost(1, 8192))
    (tmp_path / "wrong").write_text("wrong\n")
    words = ("--network", "sealed", "--passphrase-file", str(tmp_path / "wrong"))
    _, err = run(capsys, "revoke", "node", "n1", *words, status=1)
    assert "passphrase is wrong" in err
    _, err = run(capsys, "revoke", "node", "n1", "--network", "sealed", status=2)
    assert "--passphrase-file" in err
    assert not at.log


def test_a_grant_note_that_is_damaged_is_said(capsys: Captured, home: Path) -> None:
    for content in (
        b"",
        b"[]",
        b'{"format":2,"grants":[]}',
        b'{"format":1,"grants":[{"grant_id":"a"}]}',
        b"[" * 100_000,
    ):
        (home / GRANTS_FILE).write_bytes(content)
        _, err = run(capsys, "token", "ls", status=1)
        assert GRANTS_FILE in err
        out, _ = run(capsys, "token", "new", status=1)
        assert not out


def program(tmp_path: Path, text: str) -> list[str]:
    script = tmp_path / "ssh.py"
    script.write_text(text)
    return [sys.executable, "-S", str(script)]


_SSH = """
import json, sys
words = sys.argv[sys.argv.index("--") + 1:]
if words[1:] == ["skerry", "ledger", "fetch"]:
    nodes = [{"node_id": "x", "state": "self"}]
    print(json.dumps({"network_id": words[0], "records": [], "nodes": nodes}))
elif words[1:] == ["skerry", "ledger", "publish", "-"]:
    records = json.load(sys.stdin)["records"]
    result = {"id": None, "verdict": "accepted", "reason": ""}
    print(json.dumps({"results": [result] * len(records)}))
"""


def test_through_ssh_a_ledger_comes_and_statements_go(tmp_path: Path) -> None:
    way = SshPublisher("root@node", program=program(tmp_path, _SSH))
    fetched = way.fetch()
    assert (fetched.network_id, fetched.node_id) == ("root@node", "x")
    assert [one.verdict for one in way.publish([b"a", b"b"])] == ["accepted"] * 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import sys; sys.exit(255)", "status 255"),
        ("print('Welcome!')", "did not answer with JSON"),
        ("print('[]')", "did not answer with JSON"),
        ("print('{}')", "no ledger"),
    ],
)
def test_what_goes_wrong_with_ssh_is_said(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(PublishError, match=why):
        SshPublisher("node", program=program(tmp_path, text)).fetch()
    with pytest.raises(PublishError, match="cannot be run"):
        SshPublisher("node", program=[str(tmp_path / "nowhere")]).fetch()


def test_the_way_is_what_the_words_say(tmp_path: Path) -> None:
    for via, where in (
        ("ssh://root@node.example:2222", "ssh://root@node.example"),
        ("ssh://10.0.0.1", "ssh://10.0.0.1"),
        ("ssh://root@[fd00::1]", "ssh://root@[fd00::1]"),
        ("/run/x.sock", "/run/x.sock"),
    ):
        assert choose(via, network()).where == where
    for via in ("ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://a:99999", "ssh://$(x)"):
        with pytest.raises(PublishError):
            choose(via, network())
    assert choose("node:1", network(), visit=partial(Visit, ROOT)).where == "node:1"
    for via in ("node:1", "http://node/x", "udp://node"):
        with pytest.raises(PublishError, match="no way"):
            choose(via, network(), visit=None if via == "node:1" else partial(Visit, ROOT))
    for via in ("node:0", "-o", ""):
        with pytest.raises(PublishError, match="is not found"):
            Visit(ROOT, via).fetch()
    (tmp_path / "here").touch()
    assert choose(None, network(), socket=tmp_path / "here").where == str(tmp_path / "here")
    with pytest.raises(PublishError, match="no node of network"):
        choose(None, network(), socket=tmp_path / "nowhere")
    with pytest.raises(PublishError, match="does not run"):
        LocalPublisher(tmp_path / "nowhere").fetch()


def test_a_nodes_end_takes_one_batch_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    monkeypatch.setattr(
        publisher.LocalPublisher, "hand_over", lambda _, request: {"results": list(request)}
    )
    words = ("ledger", "publish", "-", "--socket", str(tmp_path / "api.sock"))
    given(b'{"records": []}')
    out, _ = run(capsys, *words)
    assert json.loads(out) == {"results": ["records"]}
    for odd in (b"", b"[]", b"\xff", b" " * (3 * BATCH_BYTES), b"[" * 50_000):
        given(odd)
        _, err = run(capsys, *words, status=1)
        assert "no records" in err
