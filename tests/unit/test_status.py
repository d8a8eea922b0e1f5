from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import commands, machine, people, screen
from appliance.control.actions import Told as ToldBy
from appliance.control.views import LedgerView
from appliance.machine import Release
from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.refusals import Refusals
from appliance.overlay.status import OverlayStatus, PeerStatus, RefusalStatus, refusal_status
from appliance.people import Console, headline, issue_text, lines_of
from appliance.problem import Problem
from appliance.status import (
    OverlayView,
    RefusedToken,
    Status,
    overlay_view,
    told_view,
)
from skerry.__main__ import main

CLOCK = Problem("clock", "the clock says 1970-01-01 00:00 UTC", "Give it a network with time.")
WAITING = Status(
    state="unprovisioned",
    state_since_s=3.0,
    reasons=(),
    notices=(),
    name="",
    node_id="",
    network="",
    network_id="",
    release=Release("1.2.0", "x86_64", "b7", "A"),
    uptime_s=3700.0,
    supervisor_uptime_s=61.0,
)
READY = replace(
    WAITING,
    state="ready",
    name="node-1",
    node_id="uzs5rv5ct3bhxhsv4fzpr25eum",
    network="home",
    network_id="ks6es6k6gkialtrgb4qqupevzy",
    overlay=OverlayView(
        "skerry0",
        "kernel",
        ("10.10.3.7", "fd00::7"),
        51820,
        (
            PeerStatus(
                "abc", "node-2", ("10.10.9.1",), "10.0.2.3:51820", "lan", 0.8321, 12.0, up=True
            ),
            PeerStatus("def", "node-3", (), "", "", None, None, up=False),
        ),
        (RefusalStatus("expired", "its grant has expired", "10.0.2.9:51820", 3, 75.0),),
    ),
)


def test_the_pods_range_is_said_or_why_there_is_none() -> None:
    assert READY.overlay is not None
    assert not [line for line in drawn(READY).splitlines() if line.startswith("pods")]
    for mode in ("kernel", "off"):
        overlay = replace(READY.overlay, mode=mode, pod_range=("10.244.7.0/24", "fd00:1::/80"))
        lines = drawn(replace(READY, overlay=overlay)).splitlines()
        assert ["pods", "10.244.7.0/24,", "fd00:1::/80"] in [line.split() for line in lines]
    overlay = replace(READY.overlay, no_pods="all 256 pod ranges are claimed")
    assert "pods       all 256 pod ranges are claimed" in drawn(replace(READY, overlay=overlay))


def test_what_is_said_of_the_ledger_and_of_those_who_refuse_this_node() -> None:
    told = [
        ToldBy(bytes(16), "node-9", "revoked", "the node\x1b[2J was revoked", 1000.0),
        ToldBy(bytes([1] * 16), "node-8", "grant-used-up", "its grant is used up", 1090.0),
    ]
    status = replace(
        READY,
        ledger=LedgerView(123, 46_285, 6, 3, 2, "synced"),
        told=told_view(told, now=1100.0),
    )
    lines = drawn(status).splitlines()
    line = "ledger     123 entries, 45.2 KiB, epoch 2, clock synced, 3 of 5 members within reach"
    assert line in lines
    assert lines[-3:] == [
        "REFUSED BY  CAUSE          LAST        ITS WORDS",
        "node-8      grant-used-up  10s ago     its grant is used up",
        "node-9      revoked        1m 40s ago  the node?[2J was revoked",
    ]
    document = json.loads(msgspec.json.encode(status))
    assert document["told"][1] == {
        "cause": "revoked",
        "detail": "the node\x1b[2J was revoked",
        "who": "node-9",
        "node_id": "a" * 26,
        "age_s": 100.0,
    }
    assert document["ledger"]["clock"] == "synced"


def drawn(status: Status) -> str:
    return screen.render(json.loads(msgspec.json.encode(status)))


def test_the_status_of_a_ready_node() -> None:
    assert drawn(READY) == "\n".join(
        [
            "node-1     ready for 3s",
            "node       uzs5rv5ct3bhxhsv4fzpr25eum",
            "network    home (ks6es6k6gkialtrgb4qqupevzy)",
            "release    1.2.0, x86_64, b7",
            "slot       A",
            "up         1h 1m, supervisor 1m 1s",
            "overlay    10.10.3.7, fd00::7",
            "interface  skerry0, kernel WireGuard, UDP port 51820",
            "",
            "MEMBER  ADDRESS    PATH                RTT     HANDSHAKE  STATE",
            "node-2  10.10.9.1  lan 10.0.2.3:51820  0.8 ms  12s        up",
            "node-3  -          -                   -       -          down",
            "",
            "REFUSED  FROM            TIMES  LAST",
            "expired  10.0.2.9:51820  3      1m 15s ago",
        ]
    )


def test_reasons_and_bad_tokens_come_with_their_way_out() -> None:
    status = replace(
        WAITING,
        reasons=(CLOCK,),
        notices=(Problem("state-lost", "it was damaged", "nothing to do"),),
        refused_tokens=(RefusedToken("/dev/sdb1", "the token is cut short", "copy it again"),),
    )
    text = drawn(status)
    for part in (
        "! clock: the clock says 1970",
        "Give it a network with time.",
        "- state-lost: it was damaged",
        "! /dev/sdb1: the token is cut short",
        "copy it again",
        "skerry provision TOKEN",
    ):
        assert part in text


def test_an_empty_document_can_be_drawn() -> None:
    assert "?" in screen.render({})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (-5, "0s"), (59.9, "59s"), (60, "1m"), (3660, "1h 1m"), (90000, "1d 1h")],
)
def test_age(seconds: float | None, text: str) -> None:
    assert screen.age(seconds) == text


def test_the_overlay_is_told() -> None:
    assert READY.overlay is not None
    snapshot = OverlayStatus(
        interface="skerry0",
        mode="kernel",
        addresses=("10.10.0.1",),
        listen_port=1,
        peers=READY.overlay.peers,
        refusals=READY.overlay.refusals,
        problems=(),
    )
    view = overlay_view(snapshot)
    assert view == OverlayView(
        "skerry0", "kernel", ("10.10.0.1",), 1, READY.overlay.peers, READY.overlay.refusals
    )


def test_how_long_ago_a_refusal_was_does_not_depend_on_the_clock() -> None:
    refusals = Refusals()
    refusals.note("expired", "d", Endpoint("10.0.0.9", 1), Now(mono=90.0, unix=1e9))
    (told,) = (refusal_status(one, 100.04) for one in refusals)
    assert told == RefusalStatus("expired", "d", "10.0.0.9:1", 1, 10.0)


# The console


def test_headline() -> None:
    assert headline(WAITING) == "unprovisioned: waiting for a token"
    assert headline(READY) == "node-1 is ready"
    assert headline(replace(READY, state="degraded", reasons=(CLOCK, CLOCK))) == (
        "node-1 is degraded (clock)"
    )


def test_console_lines_say_what_to_do_and_hold_no_moving_figure() -> None:
    waiting = "\n".join(lines_of(WAITING))
    assert "Waiting for a token: put token.txt on the SKERRY partition" in waiting
    assert "slot A" in waiting
    later = replace(READY, state_since_s=99, uptime_s=1e6, supervisor_uptime_s=1e6)
    assert lines_of(later) == lines_of(READY)
    assert "Overlay address 10.10.3.7, fd00::7" in lines_of(READY)
    assert "! the clock says 1970" in "\n".join(lines_of(replace(READY, reasons=(CLOCK,))))


def test_the_console_shows_what_changed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    issue, reload = tmp_path / "issue", tmp_path / "reload"
    reload.touch()
    os.utime(reload, (1, 1))
    console = Console(issue, reload)
    assert console.show(WAITING)
    assert "Waiting for a token" in capsys.readouterr().out
    assert "Waiting for a token" in issue.read_text()
    assert reload.stat().st_mtime > 1
    os.utime(reload, (1, 1))
    assert not console.show(replace(WAITING, uptime_s=1.0))
    assert capsys.readouterr().out == ""
    assert reload.stat().st_mtime == 1
    assert console.show(READY)
    out = capsys.readouterr().out
    assert "This is node-1 of network home: ready" in out
    assert "Skerry 1.2.0" not in out


def test_a_console_that_can_not_be_written_is_no_trouble(tmp_path: Path) -> None:
    assert Console(tmp_path / "no" / "issue", tmp_path / "no" / "reload").show(READY)


@given(st.text(max_size=50))
def test_the_issue_file_holds_no_command_of_agetty(text: str) -> None:
    shown = issue_text((text,))
    assert "\\" not in shown.replace("\\\\", "")


# The machine


def test_release_and_slot(tmp_path: Path) -> None:
    release, cmdline = tmp_path / "release.json", tmp_path / "cmdline"
    assert machine.read_release(release, cmdline) == Release()
    for damage in ("", "[1]", "{", '{"version": 7}', "\xff"):
        release.write_text(damage, encoding="latin-1")
        machine.read_release(release, cmdline)
    release.write_text('{"version": "1.2.0", "board": "x86_64", "build_id": "b7", "commit": "c"}')
    cmdline.write_text("quiet rauc.slot=B roothash=00\n")
    assert machine.read_release(release, cmdline) == Release("1.2.0", "x86_64", "b7", "B")


def test_image_epoch_is_the_latest_known_time(tmp_path: Path) -> None:
    for name, at in (("a", 1000), ("b", 3000)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    assert machine.image_epoch(tmp_path / "a", tmp_path / "b", tmp_path / "none") == 3000
    assert machine.image_epoch(tmp_path / "none") == 0


def test_free_bytes(tmp_path: Path) -> None:
    assert (machine.free_bytes(tmp_path) or 0) > 0
    assert machine.free_bytes(tmp_path / "none") is None


# The commands


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    return parser.parse_args(words)


def test_commands_without_a_supervisor_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    socket = f"--socket={tmp_path / 'none'}"
    for words in (["status"], ["status", "--json"], ["provision", "SKERRY1-ABC"], ["health"]):
        assert main([*words, socket]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "does not run here" in captured.err
        assert "journalctl -u skerry" in captured.err


def test_the_token_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands._read_token("skerry1-abc") == b"skerry1-abc"
    file = tmp_path / "token.txt"
    file.write_bytes(b"SKERRY1-XYZ\n")
    assert commands._read_token(str(file)) == b"SKERRY1-XYZ\n"
    for bad in (str(tmp_path / "none"), str(tmp_path), "", "x" * 5000, "a\0b"):
        assert main(["provision", bad]) == 2
        assert "neither a token nor a file" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "1e3", ""])
def test_a_port_is_a_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("supervisor", "run", f"--listen-port={port}")
    assert "is not a port" in capsys.readouterr().err


def test_people_texts_never_show_a_token() -> None:
    assert not any(pattern.search(people.HOW_TO_PROVISION) for pattern in people.TOKEN_PATTERNS)
