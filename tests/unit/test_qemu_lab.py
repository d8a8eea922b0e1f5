"""The lab's record, what it says of booting nodes, its table and its shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu import accel, commands, demo, lab, shell
from qemu.errors import LabError
from qemu.lab import LabRecord, NodeRecord
from qemu.process import ProcessId
from qemu.spec import Arch
from qemu.watch import STATUS_WATCHER, describe, peers_up, stage_of
from skerry.__main__ import build_parser

GONE = ProcessId(4_000_000, 1, "no such boot")
RECORD = LabRecord(
    Path("/tmp/skerry-lab-x"), GONE, "tcg", "/i/disk.img", (NodeRecord("node1", GONE),)
)


def status(**fields: object) -> dict[str, Any]:
    peer = {"name": "n2", "path": "lan", "rtt_ms": 1.26, "up": True}
    overlay = {"addresses": ["10.10.1.2/32", "fd00::2/128"], "peers": [peer]}
    document = {"state": "ready", "name": "n1", "release": {"slot": "A"}, "overlay": overlay}
    return {**document, **fields}


def test_the_record_comes_back(tmp_path: Path) -> None:
    lab.store(RECORD, tmp_path)
    assert lab.load(tmp_path) == RECORD


@given(st.text(max_size=80))
def test_a_damaged_record_is_none(text: str) -> None:
    assert LabRecord.from_json(text) is None


@pytest.mark.parametrize("field", ["sockets", "hub", "accelerator", "image", "nodes"])
def test_a_record_without_a_field_is_none(field: str) -> None:
    data = json.loads(RECORD.to_json())
    del data[field]
    assert LabRecord.from_json(json.dumps(data)) is None


def test_no_lab_says_how_to_start_one(tmp_path: Path) -> None:
    assert lab.load(tmp_path) is None
    with pytest.raises(LabError) as caught:
        lab.require(tmp_path)
    assert caught.value.hint == "make run starts them"
    lab.store(RECORD, tmp_path)
    with pytest.raises(LabError, match="no machines are up"):
        lab.require(tmp_path)


def test_ending_a_lab_whose_processes_are_gone(tmp_path: Path) -> None:
    lab.store(RECORD, tmp_path)
    assert lab.end(RECORD, directory=tmp_path) == 0
    assert lab.load(tmp_path) is None


def test_a_node_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="there is no node 2") as caught:
        lab.machine_of(RECORD, 2, directory=tmp_path)
    assert caught.value.hint == "nodes: 1"


@pytest.mark.parametrize(
    ("console", "stage"),
    [
        ("", "firmware"),
        ("BdsDxe: loading Boot0001\n", "firmware"),
        ("GNU GRUB  version 2.12\n", "boot loader"),
        ("Skerry 0.1.0, slot A, try 1 of 3\n", "boot loader"),
        ("GRUB\nEFI stub: Loaded initrd\n", "kernel"),
        ("EFI stub:\n[  2.1] skerry: first boot: making the data partition\n", "initrd"),
        ("GRUB\n[    0.000000] Linux version 6.12\n", "kernel"),
        ("Linux version 6\nWelcome to Skerry!\n", "systemd"),
        ("Welcome to Skerry!\nnode1 login: ", "login prompt"),
    ],
)
def test_how_far_a_boot_is(console: str, stage: str) -> None:
    assert stage_of(console) == stage


def test_a_status_in_a_few_words() -> None:
    assert describe(status()) == "ready, 10.10.1.2/32, peers up: n2"
    assert describe({"state": "unprovisioned"}) == "unprovisioned"
    degraded = status(state="degraded", overlay=None, reasons=[{"code": "clock"}])
    assert describe(degraded) == "degraded (clock)"


def test_only_peers_that_answer_count() -> None:
    down = {"name": "n3", "up": False}
    document = status()
    document["overlay"]["peers"].append(down)
    assert [peer["name"] for peer in peers_up(document)] == ["n2"]
    assert peers_up({}) == []


def test_the_watcher_is_a_program() -> None:
    compile(STATUS_WATCHER, "watcher", "exec")
    compile(demo._FETCH, "fetch", "exec")
    compile(demo.PING, "ping", "exec")
    compile(demo._CONNECT, "connect", "exec")


def test_the_table_has_a_row_for_each_peer() -> None:
    document = status()
    document["overlay"]["peers"].append({"name": "n3", "up": False, "path": "lan"})
    rows = demo.rows({"node1": document, "node2": {"state": "unreachable"}})
    assert rows[0] == ["node1 (n1)", "ready", "A", rows[0][3], "n2", "lan", "1.3 ms"]
    assert rows[1] == ["", "", "", "", "n3", "down", "-"]
    assert rows[2] == ["node2", "unreachable", "-", "-", "-", "-", "-"]
    assert all(len(row) == len(demo.HEADER) for row in rows)


def test_the_address_to_fetch_from() -> None:
    assert demo.overlay_address(status()) == "10.10.1.2"
    only6 = status(overlay={"addresses": ["fd00::2/128"]})
    assert demo.overlay_address(only6) == "fd00::2"
    with pytest.raises(LabError, match="no overlay address"):
        demo.overlay_address(status(overlay=None))


def test_the_leave_key_ends_typing() -> None:
    assert shell.split_leave(b"ls\r") == (b"ls\r", False)
    assert shell.split_leave(b"ls\x1drm -rf") == (b"ls", True)


def test_statuses_as_a_shell_shows_them() -> None:
    assert (shell.status_of(0), shell.status_of(3), shell.status_of(-9)) == (0, 3, 137)


def test_every_command_of_the_makefile_is_understood() -> None:
    parser = build_parser()
    for words in (["up"], ["down"], ["shell", "2"], ["logs", "1", "-f", "-u", "skerry"]):
        arguments = parser.parse_args(["lab", *words])
        assert arguments.handler in vars(commands).values()
    assert parser.parse_args(["lab", "up"]).nodes == 2
    assert parser.parse_args(["lab", "shell"]).node == 1


def test_a_foreign_processor_is_translated_without_a_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert not accel.wants_probe(Arch.AARCH64)
    monkeypatch.setenv("SKERRY_ACCEL", "tcg")
    assert not accel.wants_probe(Arch.X86_64)
    assert "thread=multi" in " ".join(accel.tcg(Arch.X86_64).arguments)
