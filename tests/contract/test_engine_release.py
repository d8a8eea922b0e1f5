"""`ENGINE=k3s K3S_VERSION=...` against a server that stands in for the place of k3s's releases.

`tests/unit/test_image_engine.py` has the rules; here it is HTTP: names with a plus, redirections as
the real place makes them, and transfers that go wrong.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from image import engine
from image.errors import BuildError

VERSION = "v1.36.3+k3s1"
# In an address a plus may be read as a blank.
PLACE = "/download/v1.36.3%2Bk3s1"
_STORE = "/store"


class Releases(ThreadingHTTPServer):
    """Its ``files`` by name; each is redirected to first. ``cut`` bytes are missing at the end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = 0

    @property
    def address(self) -> str:
        """What `K3S_RELEASES` is set to."""
        return f"http://127.0.0.1:{self.server_address[1]}/download"

    def publish(self, content: bytes, *, listed: bytes | None = None) -> None:
        """Publish a release for both architectures, and its lists of checksums."""
        digest = hashlib.sha256(content if listed is None else listed).hexdigest()
        for architecture, name in (("amd64", "k3s"), ("arm64", "k3s-arm64")):
            others = f"{'0' * 64}  k3s-airgap-images-{architecture}.tar\n"
            text = f"{others}{digest}  {name}\n"
            self.files |= {name: content, f"sha256sum-{architecture}.txt": text.encode()}


class _Handler(BaseHTTPRequestHandler):
    server: Releases

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        folder, _, name = self.path.rpartition("/")
        content = self.server.files.get(name)
        if content is None or folder not in {PLACE, _STORE}:
            self.send_error(404)
        elif folder == PLACE:
            self.send_response(302)
            self.send_header("Location", f"{_STORE}/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - self.server.cut])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Releases]:
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))
    with Releases() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ensure(releases: Releases, architecture: str = "amd64") -> Path:
    chosen = {"ENGINE": "k3s", "K3S_VERSION": VERSION, "K3S_RELEASES": releases.address}
    return engine.ensure(architecture, chosen)


@pytest.mark.parametrize(("architecture", "name"), [("amd64", "k3s"), ("arm64", "k3s-arm64")])
def test_a_release_is_fetched_once(releases: Releases, architecture: str, name: str) -> None:
    releases.publish(b"\x7fELF" * 1000)
    program = ensure(releases, architecture)
    assert program.read_bytes() == b"\x7fELF" * 1000
    sums = f"sha256sum-{architecture}.txt"
    both = [f"{PLACE}/{sums}", f"{_STORE}/{sums}", f"{PLACE}/{name}", f"{_STORE}/{name}"]
    assert releases.asked == both
    assert ensure(releases, architecture) == program
    assert releases.asked == both


def test_what_the_list_does_not_say_is_refused_and_not_kept(
    releases: Releases, tmp_path: Path
) -> None:
    releases.publish(b"something else", listed=b"what was released")
    with pytest.raises(BuildError, match="its release says"):
        ensure(releases)
    releases.files["sha256sum-amd64.txt"] = b"nothing of the kind\n"
    with pytest.raises(BuildError, match="no SHA-256 of k3s"):
        ensure(releases)
    assert not [one for one in tmp_path.rglob("k3s*") if one.is_file()]


def test_a_transfer_that_is_cut_off_is_refused_and_tried_anew(releases: Releases) -> None:
    releases.publish(b"x" * 100_000)
    releases.cut = 1
    with pytest.raises(BuildError):
        ensure(releases)
    releases.cut = 0
    assert ensure(releases).stat().st_size == 100_000


def test_a_version_that_is_not_there_is_told_with_the_way_out(releases: Releases) -> None:
    with pytest.raises(BuildError, match=r"cannot be fetched.*404") as caught:
        ensure(releases)
    assert "K3S_BIN" in str(caught.value.hint)


def test_a_version_published_anew_is_refused_after_its_first_use(
    releases: Releases, tmp_path: Path
) -> None:
    """Also with a list of checksums that fits, and with nothing left of the first but the lock."""
    releases.publish(b"first")
    shutil.rmtree(ensure(releases).parent)
    releases.publish(b"second")
    with pytest.raises(BuildError, match="not what it was when first used") as caught:
        ensure(releases)
    assert str(tmp_path / "k3s/k3s.lock") in str(caught.value.hint)
    releases.publish(b"first")
    assert ensure(releases).read_bytes() == b"first"
