"""Records of pod networking in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cni import ipam
from appliance.cni.ipam import PodRange
from appliance.cni.journal import Entry, Phase
from appliance.cni.spec import Attachment
from appliance.cni.steps import Reserve
from appliance.cni.store import Store, StoreError

POD, OTHER = Attachment("skerry", "aa11", "eth0"), Attachment("skerry", "bb22", "eth0")
STATE, _ = ipam.allocate(ipam.empty("boot-1"), (PodRange.of("10.244.7.0/24"),), POD)


def entry(attachment: Attachment = POD) -> Entry:
    return Entry(attachment, "/run/netns/a", Phase.ADDED, (Reserve(attachment),), 1)


def opened(folder: Path, boot: str = "boot-1") -> Store:
    store = Store(folder / "cni", boot)
    store.open()
    return store


def files(folder: Path) -> list[str]:
    return sorted(one.name for one in (folder / "cni" / "records").iterdir())


def test_what_was_written_is_there_at_the_next_start(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for attachment in (POD, OTHER):
        store.write(entry(attachment))
    store.write_leases(STATE)
    assert opened(tmp_path).load() == (STATE, {POD: entry(), OTHER: entry(OTHER)}, True)
    store.forget(POD)
    store.forget(POD)
    assert set(opened(tmp_path).load()[1]) == {OTHER}
    for folder in (tmp_path / "cni", tmp_path / "cni" / "records"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_after_a_reboot_there_is_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(entry())
    store.write_leases(STATE)
    state, entries, complete = opened(tmp_path, "boot-2").load()
    assert (entries, complete) == ({}, True)
    assert (state.leases, state.last) == ((), STATE.last)
    assert files(tmp_path) == []


def test_half_a_record_of_one_who_was_killed_is_swept(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(entry())
    half = tmp_path / "cni" / "records" / f"{files(tmp_path)[0]}.new"
    half.write_bytes(b"half")
    assert opened(tmp_path).load()[1] == {POD: entry()}
    assert not half.exists()


def test_what_cannot_be_read_is_kept_until_the_runtime_says_what_counts(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for attachment in (POD, OTHER):
        store.write(entry(attachment))
    store.write_leases(STATE)
    records = tmp_path / "cni" / "records"
    first, second = files(tmp_path)
    (records / first).write_bytes(b"spoilt")
    (tmp_path / "cni" / "leases").write_bytes(b"spoilt")
    for _ in range(2):
        state, entries, complete = opened(tmp_path).load()
        assert (len(entries), complete, state) == (1, False, ipam.empty("boot-1"))
    # A record under another one's name tells of nobody.
    (records / second).replace(records / ("0" * 64))
    assert opened(tmp_path).load()[1:] == ({}, False)
    opened(tmp_path).forget_spoilt()
    assert opened(tmp_path).load()[1:] == ({}, True)


def test_what_cannot_be_written_is_said_and_leaves_no_half(tmp_path: Path) -> None:
    store = opened(tmp_path)
    (tmp_path / "cni" / "leases").mkdir()
    with pytest.raises(StoreError, match="leases can't be written") as caught:
        store.write_leases(STATE)
    assert "df" in (caught.value.hint or "")
    assert sorted(one.name for one in (tmp_path / "cni").iterdir()) == ["leases", "records"]
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        Store(tmp_path / "file" / "cni", "boot-1").open()
