"""Where a node finds its token, in which order, and what it makes of bad ones."""

from __future__ import annotations

import lzma
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning import media
from provisioning.errors import ProvisioningError
from provisioning.fat import FatVolume
from provisioning.files import FileError
from provisioning.keys import public_key
from provisioning.network import NetworkInfo
from provisioning.sources import Search, find_token, inbox, node_sources
from provisioning.sources.cmdline import token_values
from provisioning.sources.directory import token_on
from provisioning.sources.nocloud import SeedError, token_in
from provisioning.storage import Window
from provisioning.token import TEXT_LIMIT, Token, make_token

ROOT = b"\x01" * 32
NOW = 1_795_000_000


def make(number: int, expires: int | None = None) -> Token:
    network = NetworkInfo("home", public_key(ROOT), b"\x02" * 32)
    return make_token(network, ROOT, now=NOW, grant_seed=bytes([number]) * 32, expires=expires)


TOKENS = [make(number) for number in range(1, 7)]
ORDER = ["person", "credential", "cmdline", "disk", "usb", "nocloud"]


class Node:
    """A node's places on a disk of the test."""

    def __init__(self, root: Path) -> None:
        self.inbox, self.credentials = root / "inbox", root / "credentials"
        self.cmdline = root / "cmdline"
        self.inbox.mkdir()
        self.credentials.mkdir()
        self.cmdline.write_text("quiet\n")

    def put(self, source: str, text: str) -> None:
        if source == "credential":
            (self.credentials / "skerry.token").write_text(text)
        elif source == "cmdline":
            self.cmdline.write_text(f"root=/dev/sda1 skerry.token={text} quiet\n")
        else:
            name = "web.token" if source == "person" else f"{source}-sda1.token"
            (self.inbox / name).write_text(text)

    def search(self, now: float = NOW) -> Search:
        return find_token(
            node_sources(inbox=self.inbox, credentials=self.credentials, cmdline=self.cmdline),
            now=now,
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_node_without_any_token_finds_none(node: Node, tmp_path: Path) -> None:
    assert node.search() == Search(None, ())
    nowhere = node_sources(inbox=tmp_path / "no", cmdline=tmp_path / "no")
    assert find_token(nowhere, now=NOW) == Search(None, ())


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_the_order_is_the_documented_one(node: Node, first: int) -> None:
    for source, token in list(zip(ORDER, TOKENS, strict=True))[first:]:
        node.put(source, token.text())
    search = node.search()
    assert search.found is not None
    assert search.found.source_name == ORDER[first]
    assert search.found.token == TOKENS[first]
    assert not search.rejected


def test_a_bad_token_is_reported_and_hides_no_good_one(node: Node) -> None:
    for source in ORDER[:-1]:
        node.put(source, "SKERRY1-BROKEN")
    node.put("nocloud", TOKENS[0].text())
    search = node.search()
    assert search.found is not None
    assert search.found.source_name == "nocloud"
    assert [one.source for one in search.rejected] == ORDER[:-1]
    assert [one.where for one in search.rejected] == [
        "inbox file web.token",
        "credential skerry.token",
        "kernel command line",
        "/dev/sda1",
        "/dev/sda1",
    ]
    assert all(one.error.hint for one in search.rejected)


def test_an_expired_token_is_rejected_by_the_clock_given(node: Node) -> None:
    node.put("cmdline", make(1, expires=NOW + 10).text())
    assert node.search(now=NOW + 9).found
    assert node.search(now=0).found
    late = node.search(now=NOW + 10)
    assert late.found is None
    assert "expired" in str(late.rejected[0].error)


def test_an_inbox_file_is_discarded_by_its_path(node: Node) -> None:
    node.put("usb", TOKENS[0].text())
    found = node.search().found
    assert found is not None
    assert found.path is not None
    inbox.discard(found.path)
    inbox.discard(found.path)
    assert node.search().found is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("web.token", "person"),
        ("disk-vda6.token", "disk"),
        ("usb-sda1.token", "usb"),
        ("nocloud-vdb.token", "nocloud"),
        ("diskette.token", "person"),
        (".usb-sda1.token.new", None),
        (".hidden.token", None),
        ("notes.txt", None),
    ],
)
def test_the_file_name_tells_the_source(name: str, kind: str | None) -> None:
    assert inbox.kind_of(name) == kind


def test_links_devices_and_giants_in_the_inbox_are_not_read(node: Node, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(TOKENS[0].text())
    (node.inbox / "a.token").symlink_to(secret)
    os.mkfifo(node.inbox / "b.token")
    (node.inbox / "c.token").write_bytes(bytes(TEXT_LIMIT + 1))
    (node.inbox / "d.token").mkdir()
    search = node.search()
    assert search.found is None
    reasons = [str(one.error) for one in search.rejected]
    assert ["symbolic link" in reasons[0], "regular" in reasons[1], "larger" in reasons[2]] == [
        True
    ] * 3
    assert "regular" in reasons[3]


def test_putting_into_the_inbox_follows_no_planted_link(tmp_path: Path) -> None:
    box, victim = tmp_path / "inbox", tmp_path / "victim"
    box.mkdir()
    victim.write_text("precious")
    (box / ".usb-sda1.token.new").symlink_to(victim)
    (box / "usb-sda1.token").symlink_to(victim)
    path = inbox.put(box, "usb-sda1.token", b"token")
    assert path.read_bytes() == b"token"
    assert not path.is_symlink()
    assert victim.read_text() == "precious"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in box.iterdir()] == ["usb-sda1.token"]


def test_an_inbox_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "inbox").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        inbox.put(tmp_path / "inbox", "a.token", b"")


@pytest.mark.parametrize(
    ("cmdline", "values"),
    [
        ("quiet", []),
        ("skerry.token=A quiet skerry.token=B", ["A", "B"]),
        ('"skerry.token=A" skerry.token="B"', ["A", "B"]),
        ("skerry.tokens=A xskerry.token=B", []),
        ("quiet -- skerry.token=A", []),
        ("skerry.token=", [""]),
    ],
)
def test_the_kernel_command_line(cmdline: str, values: list[str]) -> None:
    assert token_values(cmdline) == values


@pytest.mark.parametrize(
    ("seed", "token"),
    [
        ("", None),
        ("#cloud-config\nusers: []\n", None),
        ("#cloud-config\nskerry:\n  token: T\nusers: []\n", "T"),
        ('skerry:   # ours\n    name: x\n\n    token: "T U"  # secret\n', "T U"),
        ("skerry:\n\ttoken: 'T'", "T"),
        ("\ufeffskerry:\r\n  token: T\r\n", "T"),
        ('{"skerry": {"token": "T"}}', "T"),
        ('{"users": []}', None),
        ("other:\n  skerry:\n    token: T\n", None),
        ("{broken", None),
        ("[" * 100_000, None),
        ("{" * 100_000, None),
    ],
)
def test_seeds_that_are_read(seed: str, token: str | None) -> None:
    assert token_in(seed) == token


@pytest.mark.parametrize(
    "seed",
    [
        "skerry:\n",
        "skerry:\nother:\n  token: T\n",
        "skerry:\n  token: |\n    T\n  x: y z\n  token: 'a\n"[:24],
        'skerry:\n  token: "open\n',
        '{"skerry": {}}',
        '{"skerry": "T"}',
        '{"skerry": {"token": 5}}',
    ],
)
def test_seeds_that_speak_of_us_unreadably_are_an_error(seed: str) -> None:
    with pytest.raises(SeedError):
        token_in(seed)


@given(st.one_of(st.text(), st.text().map(lambda text: "skerry:\n" + text)))
def test_no_seed_breaks_the_reader(seed: str) -> None:
    try:
        token = token_in(seed)
    except SeedError:
        return
    assert token is None or isinstance(token, str)


@pytest.mark.parametrize("name", ["token.txt", "skerry-token.txt"])
def test_a_token_file_goes_before_a_seed(tmp_path: Path, name: str) -> None:
    assert token_on(tmp_path) is None
    (tmp_path / "meta-data").write_text("instance-id: x\n")
    assert token_on(tmp_path) is None
    (tmp_path / "user-data").write_text("skerry:\n  token: SEED\n")
    assert token_on(tmp_path) == ("user-data", b"SEED")
    (tmp_path / name).write_text("FILE")
    assert token_on(tmp_path) == (name, b"FILE")


def test_a_strangers_file_system_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of this machine")
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "token.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(FileError, match="symbolic link"):
        token_on(stick)


@pytest.mark.parametrize(
    ("own", "file", "expected"),
    [
        (True, "token.txt", "disk-sdz9.token"),
        (False, "token.txt", "usb-sdz9.token"),
        (False, "user-data", "nocloud-sdz9.token"),
    ],
)
def test_media_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, own: bool, file: str, expected: str
) -> None:
    device, link, stick, box = (tmp_path / name for name in ("sdz9", "own", "stick", "inbox"))
    stick.mkdir()
    box.mkdir()
    device.write_text("")
    if own:
        link.symlink_to(device)
    (stick / file).write_text("skerry:\n  token: T\n" if file == "user-data" else "T")

    @contextmanager
    def mounted(which: Path) -> Iterator[Path]:
        assert which == device
        yield stick

    monkeypatch.setattr(Path, "is_block_device", lambda _: True)
    monkeypatch.setattr(media, "_mounted", mounted)
    assert media.import_media(device, box, own=link) == box / expected
    assert (box / expected).read_bytes() == b"T"


def test_a_fat_medium_is_read_without_mounting_it_and_erased_after_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, box = tmp_path / "sdz9", tmp_path / "inbox"
    box.mkdir()
    vector = Path(__file__).resolve().parents[1] / "vectors" / "fat12.img.xz"
    device.write_bytes(lzma.decompress(vector.read_bytes()))
    handle = os.open(device, os.O_RDWR)
    FatVolume(Window(handle, 0, device.stat().st_size)).write("TOKEN.TXT", b"the token")
    os.close(handle)
    monkeypatch.setattr(Path, "is_block_device", lambda _: True)
    with pytest.raises(media.MediaError, match="No such file"):
        media.import_media(device, tmp_path / "missing", own=device)
    path = media.import_media(device, box, own=device)
    assert path == box / "disk-sdz9.token"
    assert path.read_bytes() == b"the token"
    assert media.wipe_media(device)
    assert not media.wipe_media(device)
    assert b"the token" not in device.read_bytes()


def test_what_is_no_block_device_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(ProvisioningError, match="not a block device"):
        media.import_media(tmp_path, tmp_path)
    with pytest.raises(ProvisioningError, match="not a block device"):
        media.wipe_media(tmp_path)
