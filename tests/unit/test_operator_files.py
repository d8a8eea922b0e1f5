"""What the operator's files and a node's answers may hold: damage, links, full disks, too much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.operator.errors import PublishError
from appliance.operator.outbox import OUTBOX_FILE, Outbox, load_outbox, save_outbox
from appliance.operator.publisher import (
    BATCH_BYTES,
    batches,
    read_dump,
    request_of,
)
from appliance.operator.snapshot import SEEN_FILE
from provisioning import operator_files
from provisioning.operator_files import NETWORK_FILE, NetworkFilesError
from tests.fakes.ledger import entry, network, node, replica, root_entry
from tests.fakes.operator import (
    do,
    fake_node,
    make_directory,
    nothing,
    out,
    rename,
)

NODES = [node(number) for number in (1, 2, 3, 4)]
A, B, C, D = NODES


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "net")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"format":2,"network_id":"","sequence":0,"stamp":0,"secrets":{},"pending":[],"sent":[]}',
        b'{"format":1,"network_id":"x","sequence":0,"stamp":0,"secrets":{},"pending":[],"sent":[]}',
    ],
)
def test_a_damaged_outbox_is_an_error_and_stays(home: Path, content: bytes) -> None:
    (home / OUTBOX_FILE).write_bytes(content)
    with pytest.raises(NetworkFilesError):
        do(home, fake_node(NODES), rename("n1", "kitchen"))
    assert (home / OUTBOX_FILE).read_bytes() == content


def test_an_outbox_of_a_newer_release_is_called_so_whatever_it_holds(home: Path) -> None:
    (home / OUTBOX_FILE).write_bytes(b'{"format":2,"other":[]}')
    with pytest.raises(NetworkFilesError, match="has format 2, this Skerry knows format 1"):
        load_outbox(home, network())


def test_what_the_root_key_did_not_sign_is_not_in_an_outbox(home: Path) -> None:
    right = root_entry("assigned", f"{A.text}/name", b"kitchen")
    wrong = entry(A, "shared", "k", b"v")
    for odd in (
        {"pending": (wrong,)},
        {"secrets": {1: b"short"}},
        {"secrets": {0: bytes(32)}},
        {"sequence": 2**60},
        {"stamp": -1},
    ):
        save_outbox(home, network(), Outbox(**odd))
        with pytest.raises(NetworkFilesError, match="damaged"):
            load_outbox(home, network())
    box = Outbox(4, 5, (right,), (right,), {7: bytes(32)})
    save_outbox(home, network(), box)
    assert load_outbox(home, network()) == box
    assert "AAAA" not in repr(box)
    assert str(bytes(32)) not in repr(box)


def test_a_link_in_the_place_of_the_outbox_is_not_followed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"{}")
    (home / OUTBOX_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NetworkFilesError, match="symbolic link"):
        load_outbox(home, network())


def test_a_full_disk_is_said_and_nothing_is_sent(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(operator_files, "write_all", full)
    at = fake_node(NODES)
    with pytest.raises(NetworkFilesError, match="No space left"):
        do(home, at, out(3))
    assert not at.log


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\x00", b'{"format":1}'])
def test_a_damaged_cache_is_only_a_cache(home: Path, content: bytes) -> None:
    (home / SEEN_FILE).write_bytes(content)
    at = fake_node(NODES)
    assert do(home, at, nothing).status == 0
    assert json.loads((home / SEEN_FILE).read_bytes())["format"] == 1
    (home / SEEN_FILE).write_bytes(content)
    at.down = True
    with pytest.raises(PublishError):
        do(home, at, nothing)


def test_the_network_file_keeps_what_it_said_besides_the_epoch(home: Path) -> None:
    before = json.loads((home / NETWORK_FILE).read_text())
    do(home, fake_node(NODES), out(3))
    after = json.loads((home / NETWORK_FILE).read_text())
    assert {name for name in before if before[name] != after[name]} == {"otp_seed", "epoch"}


@given(st.lists(st.integers(1, 4480), max_size=60))
def test_batches_keep_order_and_fit(sizes: list[int]) -> None:
    records = [bytes(size) for size in sizes]
    parts = list(batches(records))
    assert [one for part in parts for one in part] == records
    assert all(len(json.dumps(request_of(part))) < BATCH_BYTES + 1000 for part in parts)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"network_id": 5, "records": []},
        {"network_id": "x", "records": "no"},
        {"network_id": "x", "records": [5]},
        {"network_id": "x", "records": ["*"]},
        {"network_id": "x", "records": ["A" * 8000]},
    ],
)
def test_an_answer_that_is_no_ledger_is_an_error(document: dict[str, object]) -> None:
    with pytest.raises(PublishError):
        read_dump(document, "somewhere")


def test_the_whole_dump_is_taken_as_it_is() -> None:
    here = replica([A])
    records = [one.record for one in here]
    document = {"network_id": "x", "now_ms": True, **request_of(records)}
    fetched = read_dump(document, "somewhere")
    assert fetched.records == tuple(records)
    assert fetched.now_ms is None
    nodes = [{"node_id": "b", "state": "self"}, {"node_id": "c", "state": "up", "refused": "why"}]
    fetched = read_dump({**document, "now_ms": 5, "nodes": [*nodes, 7, {"node_id": 1}]}, "there")
    assert (fetched.now_ms, fetched.node_id) == (5, "b")
    assert fetched.states == {"b": "self", "c": "refused"}
    assert read_dump({**document, "node_id": "a", "nodes": "no"}, "there").node_id == "a"
