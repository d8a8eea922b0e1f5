"""Bad input against the real commands and real supervisor processes: words, never a traceback.

What is promised: a message that says what is wrong and the way out, nothing lost, and after every
interruption a node that either has its identity or still has its token.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioning.codec import encode
from provisioning.identity import IdentityStore, new_identity, read_identity, write_identity
from provisioning.keys import public_key
from provisioning.network import NetworkInfo
from provisioning.token import TEXT_LIMIT, make_token, wrap
from skerry.__main__ import main
from tests.contract.forks import ROOT, Forks, Node

SEED = bytes(range(32))
NETWORK = NetworkInfo("home", public_key(SEED), bytes(32))
TOKEN = make_token(NETWORK, SEED, now=time.time(), expires=int(time.time()) + 86400)
TEXT = TOKEN.text()
RECORD = write_identity(new_identity(TOKEN, name="one", now=time.time()))
NODE_ID = read_identity(RECORD).id_text
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and becomes another user")

TOKENS = {
    "empty": (b"", "the token is empty"),
    "blank": (b" \n\t\0", "the token is empty"),
    "foreign": (b"hello", "not a Skerry token"),
    "binary": (bytes(range(128, 256)), "not a Skerry token"),
    "cut": (TEXT[:200].encode(), "cut short"),
    "flipped": (
        TEXT[:60].encode() + bytes([TEXT.encode()[60] ^ 1]) + TEXT[61:].encode(),
        "damaged",
    ),
    "twice": ((TEXT + TEXT).encode(), "damaged"),
    "half of UTF-16": (TEXT.encode("utf-16")[:-1], "damaged"),
    "newer": (wrap(2, b"x").encode(), "format 2"),
    "older": (wrap(0, b"x").encode(), "format 0"),
    "structure": (wrap(1, encode((1, 2))).encode(), "content is wrong"),
    "large": (b"A" * (TEXT_LIMIT + 1), str(TEXT_LIMIT)),
    "huge": (b"A" * (3 << 20), str(TEXT_LIMIT)),
}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="skerry-") as path:
        yield Path(path)


def with_inbox(directory: Path, content: bytes = TEXT.encode(), *, owner: int = 0) -> Path:
    """Return a token in the inbox of a supervisor that is yet to start."""
    inbox = directory / "run" / "inbox"
    inbox.mkdir(parents=True)
    token = inbox / "x.token"
    token.write_bytes(content)
    if owner:
        directory.chmod(0o755)
        for path in (directory / "run", inbox, token):
            os.chown(path, owner, owner)
    return token


def place(path: Path, kind: str) -> None:
    """Put something in the place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    match kind:
        case "good":
            path.write_bytes(RECORD)
            path.chmod(0o600)
        case "empty":
            path.touch(0o600)
        case "garbage":
            path.write_bytes(bytes(range(256)) * 3)
        case "cut":
            path.write_bytes(RECORD[:300])
        case "flipped":
            path.write_bytes(RECORD[:200] + bytes([RECORD[200] ^ 4]) + RECORD[201:])
        case "huge":
            path.write_bytes(bytes(3 << 20))
        case "directory":
            path.mkdir()
            (path / "x").touch()
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/etc/hostname")
        case "socket":
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))


def codes(status: dict[str, Any]) -> set[str]:
    """Return what is wrong with a node; every reason names its way out."""
    assert all(one["message"] and one["hint"] for one in status["reasons"])
    return {one["code"] for one in status["reasons"]}


def clean(node: Node) -> str:
    """Return the log, in which there is neither a traceback nor a secret."""
    log = node.log()
    assert "Traceback" not in log
    assert TEXT[:40] not in log
    return log


# Tokens


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = main(words)
    err = capsys.readouterr().err
    assert status in {1, 2}
    assert err.startswith("skerry: ") or "\nskerry: " in err
    assert len(err.splitlines()) >= 2, f"no way out: {err}"
    assert TEXT[:60] not in err
    return err


@pytest.mark.parametrize("kind", TOKENS)
def test_a_bad_token_wherever_it_is_given(
    kind: str, tmp_path: Path, forks: Forks, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = TOKENS[kind]
    file = tmp_path / "token"
    file.write_bytes(content)
    shown = refuse(capsys, "token", "show", str(file))
    assert words in shown
    (tmp_path / "image").write_bytes(bytes(4096))
    assert shown == refuse(
        capsys, *("flash", str(tmp_path / "image"), str(tmp_path / "out"), "--token", str(file))
    )
    assert not (tmp_path / "out").exists()
    with_inbox(tmp_path, content)
    node = forks.start(tmp_path, token_file=str(file))
    node.until("unprovisioned")
    deadline = time.monotonic() + 30
    while len(refused := node.status()["refused_tokens"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [one["where"] for one in refused] == [str(file), "inbox file x.token"]
    assert all(words in one["error"] and one["hint"] for one in refused)
    refuse(capsys, "provision", str(file), f"--socket={tmp_path}/run/api.sock")
    # And a good one is taken all the same.
    assert main(["provision", TEXT, f"--socket={tmp_path}/run/api.sock"]) == 0
    node.until("ready")
    clean(node)
    node.kill()


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket"])
def test_what_is_no_file_is_not_read(
    kind: str, tmp_path: Path, forks: Forks, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    place(path, kind)
    token = with_inbox(tmp_path)
    place(token.with_name("a.token"), kind)
    refuse(capsys, "token", "show", str(path))
    refuse(capsys, "provision", str(path), f"--socket={tmp_path}/none")
    refuse(capsys, "flash", str(path), str(tmp_path / "out"), "--yes")
    node = forks.start(tmp_path, token_file=str(path))
    assert node.until("ready")["network"] == "home"
    clean(node)
    node.kill()


@pytest.mark.parametrize("words", [("token", "show"), ("provision", "--socket=/nowhere")])
@pytest.mark.parametrize(
    "given", ["/dev/null", "/dev/zero", "/proc/self/mem", "", "\udcff", "a" * 300]
)
def test_odd_words_for_a_token(
    words: tuple[str, ...], given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(capsys, *words, given)


def skerry(*words: str, **streams: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
    return subprocess.run(
        [sys.executable, "-m", "skerry", *words],
        cwd=ROOT,
        text=True,
        timeout=50,
        stderr=subprocess.PIPE,
        **streams,
    )


def test_streams_that_are_closed_endless_or_full(tmp_path: Path) -> None:
    closed = skerry("token", "show", "-", preexec_fn=lambda: os.close(0))
    assert closed.stderr.startswith("skerry: the token is empty")
    with Path("/dev/zero").open("rb") as endless, Path("/dev/full").open("w") as full:
        assert "16384" in skerry("token", "show", "-", stdin=endless).stderr
        (tmp_path / "token").write_text(TEXT)
        done = skerry("token", "show", str(tmp_path / "token"), stdout=full)
    assert done.returncode == 1
    assert done.stderr == "skerry: [Errno 28] No space left on device\n"


def test_a_heap_of_bad_tokens_hides_no_good_one(tmp_path: Path, forks: Forks) -> None:
    inbox = with_inbox(tmp_path, b"junk").parent
    for number in range(200):
        (inbox / f"{number}.token").write_text("junk")
    (inbox / "new\nline\x1b[2J.token").write_text(TEXT)
    (inbox / os.fsdecode(b"\xff.token")).write_text(TEXT)
    node = forks.start(tmp_path)
    node.until("unprovisioned")
    deadline = time.monotonic() + 30
    while not (refused := node.status()["refused_tokens"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(refused) <= 64
    assert {r"inbox file new\nline\x1b[2J.token", r"inbox file \udcff.token"} <= {
        one["where"] for one in refused
    }
    (inbox / "zzz.token").write_text(TEXT)
    node.until("ready")
    assert "\x1b" not in clean(node)
    node.kill()


# The clock


@pytest.mark.parametrize("clock", [0.0, -7.0, 1e9])
def test_a_clock_of_long_ago_keeps_nobody_out(clock: float, tmp_path: Path, forks: Forks) -> None:
    with_inbox(tmp_path)
    node = forks.start(tmp_path, clock=clock)
    # Members answer it (the fake overlay's), and it goes by their time.
    status = node.until("ready")
    assert [one["code"] for one in status["notices"]] == ["clock-by-members"]
    assert status["network"] == "home"
    node.kill()
    # As soon as the clock is right, nothing is to be said of it.
    node = forks.start(tmp_path)
    again = node.until("ready")
    assert (again["node_id"], again["notices"]) == (status["node_id"], [])
    clean(node)
    node.kill()


@pytest.mark.parametrize("clock", [4e9, 1e18])
def test_a_clock_of_the_far_future_names_itself(clock: float, tmp_path: Path, forks: Forks) -> None:
    token = with_inbox(tmp_path)
    node = forks.start(tmp_path, clock=clock)
    node.until("unprovisioned")
    deadline = time.monotonic() + 30
    while not (refused := node.status()["refused_tokens"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "this clock says" in refused[0]["error"]
    assert "set the clock" in refused[0]["hint"]
    assert token.exists()
    clean(node)
    node.kill()


# The disk


@needs_root
@pytest.mark.parametrize(
    ("disk", "code"),
    [("size=4k", "disk-full"), ("nr_inodes=2", "disk-full"), ("ro", "state-unwritable")],
)
def test_a_disk_that_takes_nothing_on_the_first_boot(
    disk: str, code: str, tmp_path: Path, forks: Forks, capsys: pytest.CaptureFixture[str]
) -> None:
    token = with_inbox(tmp_path)
    node = forks.start(tmp_path, disk=disk)
    deadline = time.monotonic() + 30
    while not {"identity-not-made", code} <= codes(node.until("unprovisioned", "provisioning")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert token.exists()
    said = refuse(capsys, "provision", TEXT, f"--socket={tmp_path}/run/api.sock")
    assert "the identity cannot be kept" in said
    clean(node)
    node.kill()
    # Room, or a repaired disk, and it goes on as if nothing had been.
    node = forks.start(tmp_path)
    assert node.until("ready")["network"] == "home"
    node.kill()


@needs_root
def test_a_disk_that_became_read_only_keeps_the_node_running(tmp_path: Path, forks: Forks) -> None:
    with_inbox(tmp_path)
    first = forks.start(tmp_path)
    before = first.until("ready")["node_id"]
    first.kill()
    node = forks.start(tmp_path, disk="ro")
    status = node.until("degraded")
    assert (status["node_id"], codes(status)) == (before, {"state-unwritable"})
    assert status["overlay"] is not None
    clean(node)
    node.kill()


@needs_root
@pytest.mark.parametrize("what", ["state", "state/identity", "state/identity/identity.bin"])
def test_files_of_another_owner_are_named_and_never_replaced(
    what: str, open_path: Path, forks: Forks
) -> None:
    tmp_path = open_path
    token = with_inbox(tmp_path, owner=NOBODY)
    place(tmp_path / "state/identity/identity.bin", "good")
    for path in ("state", "state/identity", "state/identity/identity.bin"):
        if path == what:
            break
        os.chown(tmp_path / path, NOBODY, NOBODY)
    (tmp_path / "state").chmod(0o700)
    node = forks.start(tmp_path, uid=NOBODY)
    status = node.until("degraded")
    assert "identity-unusable" in codes(status)
    reason = next(one for one in status["reasons"] if one["code"] == "identity-unusable")
    assert "Permission denied" in reason["message"]
    assert "belongs to user skerry" in reason["hint"]
    assert token.exists()
    assert (tmp_path / "state/identity/identity.bin").read_bytes() == RECORD
    clean(node)
    node.kill()


# Identity and state that are not what they were


KINDS = ("good", "missing", "empty", "flipped")
ODD = (
    ("good", "socket"),
    ("garbage", "good"),
    ("huge", "good"),
    ("link", "cut"),
    ("pipe", "directory"),
)


@pytest.mark.parametrize(("first", "second"), [*itertools.product(KINDS, KINDS), *ODD])
def test_whatever_became_of_the_two_copies(
    first: str, second: str, tmp_path: Path, forks: Forks
) -> None:
    folder = tmp_path / "state" / "identity"
    place(folder / "identity.bin", first)
    place(folder / "identity.bak", second)
    node = forks.start(tmp_path)
    status = node.until("ready", "degraded", "unprovisioned")
    kinds = {first, second}
    if "good" in kinds:
        assert (status["state"], status["node_id"]) == ("ready", NODE_ID)
        assert {(folder / name).read_bytes() for name in ("identity.bin", "identity.bak")} == {
            RECORD
        }
    elif kinds == {"missing"}:
        assert status["state"] == "unprovisioned"
    else:
        assert codes(status) == {"identity-lost"}
        assert "Lost are its keys" in status["reasons"][0]["message"]
        # Nothing is thrown away, and a token makes a new node of it.
        assert len(list(folder.glob("*.damaged-1"))) == len(kinds - {"missing"}) or (
            first == second and len(list(folder.glob("*.damaged-1"))) == 2
        )
        shutil.copyfile(_written(tmp_path / "new"), node.inbox / "x.token")
        assert node.joined()["node_id"] != NODE_ID
    clean(node)
    node.kill()


def _written(path: Path) -> Path:
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("file", "kind", "code"),
    [
        ("state.db", "empty", None),
        ("state.db", "garbage", "state-lost"),
        ("state.db", "directory", "state-lost"),
        ("state.db", "pipe", "state-lost"),
        ("state.db", "link", "state-lost"),
        ("state.db-wal", "garbage", None),
        ("state.db-wal", "directory", "state-lost"),
        ("state.db-journal", "garbage", None),
        ("state.db-journal", "pipe", "state-lost"),
    ],
)
def test_whatever_became_of_the_state_database(
    file: str, kind: str, code: str | None, tmp_path: Path, forks: Forks
) -> None:
    place(tmp_path / "state/identity/identity.bin", "good")
    if file != "state.db":
        node = forks.start(tmp_path)
        node.until("ready")
        node.kill()
        (tmp_path / "state" / file).unlink(missing_ok=True)
    place(tmp_path / "state" / file, kind)
    node = forks.start(tmp_path)
    status = node.until("ready", "degraded")
    assert status["node_id"] == NODE_ID
    assert codes(status) == ({code} if code else set())
    assert bool(list((tmp_path / "state").glob("*.corrupt-*"))) == (code is not None)
    clean(node)
    node.kill()
    # It is said once: the next start finds a sound database.
    node = forks.start(tmp_path)
    assert node.until("ready", "degraded")["state"] == "ready"
    node.kill()


# Two at once, and one that is killed


@pytest.mark.parametrize("disk", ["", pytest.param("ro", marks=needs_root)])
def test_a_second_supervisor_ends_and_the_first_notices_nothing(
    disk: str, tmp_path: Path, forks: Forks
) -> None:
    first = forks.start(tmp_path, disk=disk)
    first.until("unprovisioned")
    second = forks.start(tmp_path)
    assert second.wait()
    assert "is in use by another process\n  Is a second supervisor running?" in clean(second)
    assert first.status()["state"] == "unprovisioned"
    first.kill()
    third = forks.start(tmp_path)
    third.until("unprovisioned")
    third.kill()


@pytest.mark.parametrize("kind", ["socket", "garbage", "pipe", "link"])
def test_a_socket_that_was_left_is_replaced(kind: str, tmp_path: Path, forks: Forks) -> None:
    place(tmp_path / "run/api.sock", kind)
    node = forks.start(tmp_path)
    assert node.until("unprovisioned")
    node.kill()


def test_a_directory_in_the_place_of_the_socket(tmp_path: Path, forks: Forks) -> None:
    place(tmp_path / "run/api.sock", "directory")
    node = forks.start(tmp_path)
    assert node.wait()
    assert "the local API can't listen on" in clean(node)


def test_killed_before_any_step_it_has_its_identity_or_still_its_token(
    tmp_path: Path, forks: Forks
) -> None:
    """Every step on the disk from the start to `ready` is once the one that is not done."""
    seen: set[tuple[str, ...]] = set()
    for step in itertools.count(1):
        base = tmp_path / str(step)
        base.mkdir()
        token = with_inbox(base)
        node = forks.start(base, kill_at=step)
        while not (ended := node.wait(0)) and node.status().get("state") != "ready":
            time.sleep(0.002)
        node.kill()
        found = [base / "state/identity" / name for name in ("identity.bin", "identity.bak")]
        whole = [read_identity(path.read_bytes()) for path in found if path.exists()]
        assert whole or token.exists()
        present = tuple(sorted(str(path.relative_to(base)) for path in base.rglob("*")))
        if present not in seen:
            seen.add(present)
            again = forks.start(base)
            status = again.until("ready")
            assert not whole or status["node_id"] == whole[0].id_text
            again.kill()
            kept = IdentityStore(base / "state/identity")
            assert kept.load() is not None
            assert not kept.notices
            clean(again)
        if not ended:
            break
    assert step > 20
    assert len(seen) > 6
