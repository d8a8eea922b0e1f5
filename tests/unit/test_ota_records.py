"""Records, boot facts and boot-loader state: damaged, oversized, unknown, on a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota import grubenv, postmortem
from ota.errors import OtaError, Trouble
from ota.node import NodeFiles, grubenv_path, read_boot, read_boot_choice, slot_of
from ota.records import FAILED, GOOD, PENDING, Records
from ota.trial import Failures, GoodSlots
from tests.unit.test_ota_trial import failure, pending

BLOCK = b"# GRUB Environment Block\nORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=3\n"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "update", now=lambda: 1000.0)


def put(records: Records, name: str, content: bytes) -> None:
    records.directory.mkdir(exist_ok=True)
    (records.directory / name).write_bytes(content)


def test_records_come_back(records: Records) -> None:
    assert records.pending() is None
    records.save_pending(pending())
    assert records.pending() == pending()
    records.save_failures(Failures(failures=(failure("2"),)))
    assert records.failures().failures == (failure("2"),)
    records.clear_pending()
    assert records.pending() is None
    records.clear_pending()
    assert records.problems == []


def test_records_are_for_root_only(records: Records) -> None:
    records.save_pending(pending())
    assert (records.directory / PENDING).stat().st_mode & 0o777 == 0o600
    assert records.directory.stat().st_mode & 0o777 == 0o700
    assert os.listdir(records.directory) == [PENDING]  # no temporary file stays  # noqa: PTH208


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 1}',
        b'{"format": "1"}',
        b'{"format": 99, "phase": "activated"}',
        msgspec.json.encode(pending())[:-7],
        msgspec.json.encode(pending()).replace(b"activated", b"imagined"),
        b"x" * 300_000,
    ],
)
def test_a_damaged_record_is_kept_aside_and_said(records: Records, content: bytes) -> None:
    put(records, PENDING, content)
    assert records.pending() is None
    (problem,) = records.problems
    assert "damaged" in problem
    assert "pending.json.damaged-1000" in problem
    assert (records.directory / "pending.json.damaged-1000").read_bytes() == content
    assert records.pending() is None
    assert len(records.problems) == 1


def test_damage_in_one_record_leaves_the_others(records: Records) -> None:
    records.save_pending(pending())
    put(records, FAILED, b"?")
    put(records, GOOD, b"?")
    assert records.failures() == Failures()
    assert records.good_slots() == GoodSlots()
    assert records.pending() == pending()
    assert len(records.problems) == 2


@given(st.binary(max_size=200))
def test_no_content_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, b: bytes) -> None:
    records = Records(tmp_path_factory.mktemp("r"))
    put(records, PENDING, b)
    assert records.pending() is None


def test_a_newer_release_may_add_fields(records: Records) -> None:
    document = json.loads(msgspec.json.encode(pending()))
    put(records, PENDING, json.dumps({**document, "news": [1]}).encode())
    assert records.pending() == pending()


def test_a_full_disk_leaves_the_old_record(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.save_pending(pending())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OtaError, match="No space left") as caught:
        records.save_pending(pending(boots=2))
    assert caught.value.trouble is Trouble.SPACE
    assert "free space" in (caught.value.hint or "")
    monkeypatch.undo()
    assert records.pending() == pending()


def test_an_unreadable_record_is_said(records: Records) -> None:
    records.directory.mkdir()
    (records.directory / PENDING).mkdir()
    assert records.pending() is None
    assert "cannot be read" in records.problems[0]


@pytest.mark.parametrize(
    ("line", "slot"),
    [
        ("quiet rauc.slot=A panic=5", "A"),
        ("rauc.slot=A rauc.slot=B", "B"),
        ("rauc.slot=", None),
        ("rauc.slot=../x", None),
        ("rauc.slots=A", None),
        ("", None),
    ],
)
def test_slot_of(line: str, slot: str | None) -> None:
    assert slot_of(line) == slot


def files(tmp_path: Path, release: bytes = b"", conf: str = "") -> NodeFiles:
    (tmp_path / "cmdline").write_text("rauc.slot=A\n")
    (tmp_path / "boot_id").write_text("id\n")
    (tmp_path / "release").write_bytes(release)
    (tmp_path / "conf").write_text(conf)
    return NodeFiles(
        updates=tmp_path / "update",
        command_line=tmp_path / "cmdline",
        boot_id=tmp_path / "boot_id",
        release=tmp_path / "release",
        rauc_config=tmp_path / "conf",
    )


@pytest.mark.parametrize("release", [b"", b"{", b"[]", b'{"version": 3}', b"\xff"])
def test_a_damaged_release_file_leaves_the_rest(tmp_path: Path, release: bytes) -> None:
    boot = read_boot(files(tmp_path, release))
    assert (boot.slot, boot.boot_id, boot.version) == ("A", "id", "")


def test_missing_files_make_no_boot(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    found = NodeFiles(nowhere, nowhere, nowhere, nowhere, nowhere)
    assert read_boot(found).slot is None
    assert read_boot_choice(found) is None


def test_the_boot_choice_is_where_rauc_says(tmp_path: Path) -> None:
    env = tmp_path / "grubenv"
    env.write_bytes(BLOCK.ljust(1024, b"#"))
    found = files(tmp_path, conf=f"[system]\ngrubenv={env}\n")
    choice = read_boot_choice(found)
    assert choice is not None
    assert choice.first == "B"
    assert (choice.tries("B"), choice.tries("A"), choice.tries("C")) == (3, 0, None)
    assert grubenv_path(files(tmp_path, conf="no section")).name == "grubenv"


@pytest.mark.parametrize(
    "block", [b"", b"ORDER=A", b"# GRUB Environment", b"# GRUB Environment Block\n" + b"#" * 70_000]
)
def test_what_is_no_environment_block(block: bytes) -> None:
    assert grubenv.parse(block) is None


@given(st.binary(max_size=300))
def test_any_block_is_parsed_or_refused(body: bytes) -> None:
    choice = grubenv.parse(b"# GRUB Environment Block\n" + body)
    assert choice is not None
    assert all(0 <= counter.tries < 1000 for counter in choice.counters.values())


def test_an_empty_order_has_no_first() -> None:
    choice = grubenv.parse(b"# GRUB Environment Block\n" + b"#" * 900)
    assert choice is not None
    assert choice.first is None


@pytest.mark.parametrize(
    ("status", "reasons"),
    [
        (
            '{"state": "degraded", "problems": [{"message": "no key"}]}',
            ("state: degraded", "no key"),
        ),
        ('{"state": "joining", "problems": ["a"]}', ("state: joining", "a")),
        ("(skerry: no such file)", ("(skerry: no such file)",)),
        ("[1]", ()),
        ("", ()),
        ('{"problems": 3}', ()),
    ],
)
def test_supervisor_reasons(status: str, reasons: tuple[str, ...]) -> None:
    assert postmortem.supervisor_reasons(status) == reasons


def test_a_trial_is_named_safely() -> None:
    record = msgspec.structs.replace(pending(), version="../../etc/x y")
    assert "/" not in postmortem.trial_name(record)
    assert postmortem.trial_name(msgspec.structs.replace(record, installed_at=10**30)).startswith(
        "unknown-time"
    )


def test_run_command_survives_everything() -> None:
    assert "no-such-program" in postmortem.run_command(["no-such-program"])
    assert postmortem.run_command(["printf", "x\\377"]) == "x\N{REPLACEMENT CHARACTER}"


def test_only_the_last_trials_are_kept(records: Records) -> None:
    for number in range(postmortem.KEPT + 3):
        record = msgspec.structs.replace(pending(), installed_at=number * 100_000)
        postmortem.write_summary(
            records,
            record,
            postmortem.Summary(
                version=str(number),
                build_id="",
                slot="B",
                back_on_slot="A",
                back_on_version="1",
                at=number,
                boots=3,
                reason="x",
            ),
        )
    kept = list((records.directory / postmortem.DIRECTORY).iterdir())
    assert len(kept) == postmortem.KEPT
    latest = postmortem.last_summary(records)
    assert latest is not None
    assert latest.version == str(postmortem.KEPT + 2)
    (max(kept) / "summary.json").write_bytes(b"?")
    latest = postmortem.last_summary(records)
    assert latest is not None
    assert latest.version == str(postmortem.KEPT + 1)
