"""The real RAUC of the image, on a private bus, with files for slots: does our client speak to it?

What cannot be here is writing a slot: a verity bundle needs device-mapper (tests/vm has that).
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from image.tools import ToolsRoot
from ota import grubenv
from ota.errors import OtaError, Trouble
from ota.installer import BundleInfo, Mark, Progress
from ota.rauc import Rauc
from tests.fakes.rauc import private_bus

T = TypeVar("T")
_CONFIG = """[system]
compatible=skerry-test
bootloader=grub
grubenv={0}/grubenv
data-directory={0}
activate-installed=false
bundle-formats=verity
[keyring]
path={0}/good.crt
[slot.rootfs.0]
device={0}/a.img
type=raw
bootname=A
[slot.rootfs.1]
device={0}/b.img
type=raw
bootname=B
[slot.boot.0]
device={0}/boot-a.img
type=raw
parent=rootfs.0
[slot.boot.1]
device={0}/boot-b.img
type=raw
parent=rootfs.1
"""
_MANIFEST = """[update]
compatible={compatible}
version=2
build=b2
[bundle]
format=verity
[image.rootfs]
filename=root.img
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """A directory with keys and bundles, and the bus on which RAUC serves it."""

    path: Path
    address: str
    tools: ToolsRoot

    def use(self, action: Callable[[Rauc], Awaitable[T]]) -> T:
        async def conversation() -> T:
            async with asyncio.timeout(30), Rauc.connect(self.address) as client:
                return await action(client)

        return asyncio.run(conversation())

    def choice(self) -> grubenv.BootChoice:
        found = grubenv.parse((self.path / "grubenv").read_bytes())
        assert found is not None
        return found

    def trouble(self, action: Callable[[Rauc], Awaitable[T]]) -> OtaError:
        with pytest.raises(OtaError) as caught:
            self.use(action)
        return caught.value


def make_key(path: Path, name: str, tools: ToolsRoot) -> None:
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-subj", f"/CN={name}", "-days", "30"]
    argv += ["-keyout", f"{path}/{name}.key", "-out", f"{path}/{name}.crt"]
    tools.run(argv, binds=[path])


def pack_bundle(
    work: Path, target: Path, tools: ToolsRoot, signer: tuple[Path, Path], *, compatible: str
) -> None:
    """Make a bundle without a system in it; ``signer`` is a certificate and its key."""
    content = work / f"in-{target.stem}"
    content.mkdir()
    # RAUC refuses a bundle below 16 KiB, so the contents must not compress well.
    blocks = [hashlib.sha512(number.to_bytes(4)).digest() for number in range(1024)]
    (content / "root.img").write_bytes(b"".join(blocks))
    (content / "manifest.raucm").write_text(_MANIFEST.format(compatible=compatible))
    certificate, key = signer
    argv = ["rauc", f"--cert={certificate}", f"--key={key}", "bundle", str(content), str(target)]
    tools.run(argv, binds=[work, target.parent, certificate.parent])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    tools = ToolsRoot.ensure()
    path = tmp_path_factory.mktemp("rauc")
    for name in ("good", "other"):
        make_key(path, name, tools)
    for name, key, compatible in (
        ("good", "good", "skerry-test"),
        ("foreign", "other", "skerry-test"),
        ("arm", "good", "skerry-arm"),
    ):
        signer = (path / f"{key}.crt", path / f"{key}.key")
        pack_bundle(path, path / f"{name}.raucb", tools, signer, compatible=compatible)
    for name in ("a", "b", "boot-a", "boot-b"):
        (path / f"{name}.img").write_bytes(bytes(1 << 20))
    (path / "system.conf").write_text(_CONFIG.format(path))
    facts = ["ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0"]
    tools.run(["grub-editenv", f"{path}/grubenv", "set", *facts], binds=[path])
    with private_bus(path) as address:
        environment = [
            "env",
            "DBUS_STARTER_BUS_TYPE=session",
            f"DBUS_SESSION_BUS_ADDRESS={address}",
        ]
        service = ["rauc", f"--conf={path}/system.conf", f"--mount={path}/mnt", "service"]
        argv = tools.command([*environment, *service, "--override-boot-slot=A"])
        with (
            (path / "log").open("w") as log,
            subprocess.Popen(argv, stdout=log, stderr=log) as rauc,
        ):
            try:
                found = Bench(path, address, tools)
                wait_until_served(found)
                yield found
            finally:
                rauc.terminate()


def wait_until_served(bench: Bench) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            bench.use(lambda rauc: rauc.operation())
        except OtaError:
            assert time.monotonic() < deadline, (bench.path / "log").read_text()
            time.sleep(0.05)
        else:
            return


def test_slots_and_properties(bench: Bench) -> None:
    slots = {slot.name: slot for slot in bench.use(lambda rauc: rauc.slots())}
    assert (slots["rootfs.0"].bootname, slots["rootfs.0"].state) == ("A", "booted")
    assert (slots["rootfs.1"].bootname, slots["rootfs.1"].boot_status) == ("B", "bad")
    assert (slots["boot.0"].bootname, slots["boot.0"].parent) == ("", "rootfs.0")
    assert bench.use(lambda rauc: rauc.compatible()) == "skerry-test"
    assert bench.use(lambda rauc: rauc.boot_slot()) == "A"
    assert bench.use(lambda rauc: rauc.operation()) == "idle"


def test_marks_reach_the_boot_loader(bench: Bench) -> None:
    bench.use(lambda rauc: rauc.mark(Mark.ACTIVE, "rootfs.1"))
    assert bench.choice().order == ("B", "A")
    assert bench.choice().counters["B"] == grubenv.SlotCounter(ok=True, tries=0)
    assert bench.use(lambda rauc: rauc.primary()) == "rootfs.1"
    bench.use(lambda rauc: rauc.mark(Mark.BAD, "rootfs.1"))
    bench.use(lambda rauc: rauc.mark(Mark.ACTIVE, "booted"))
    bench.use(lambda rauc: rauc.mark(Mark.GOOD, "booted"))
    assert bench.choice().order == ("A", "B")
    assert bench.choice().counters["B"].ok is False
    assert bench.use(lambda rauc: rauc.primary()) == "rootfs.0"


def test_a_good_bundle_is_read(bench: Bench) -> None:
    info = bench.use(lambda rauc: rauc.inspect(f"{bench.path}/good.raucb"))
    assert info == BundleInfo("skerry-test", "2", "b2", "", info.manifest_hash)
    assert len(info.manifest_hash) == 64


def test_a_foreign_signature(bench: Bench) -> None:
    error = bench.trouble(lambda rauc: rauc.inspect(f"{bench.path}/foreign.raucb"))
    assert error.trouble is Trouble.SIGNATURE


@pytest.mark.parametrize("cut", [1, 500, 60_000, -1])
def test_a_cut_bundle(bench: Bench, cut: int) -> None:
    whole = (bench.path / "good.raucb").read_bytes()
    piece = bench.path / "cut.raucb"
    piece.write_bytes(whole[:-cut] if cut > 0 else whole[:100])
    error = bench.trouble(lambda rauc: rauc.inspect(str(piece)))
    assert error.trouble is Trouble.TRUNCATED
    error = bench.trouble(lambda rauc: rauc.install(str(piece)))
    assert error.trouble is Trouble.TRUNCATED


def test_no_bundle(bench: Bench) -> None:
    error = bench.trouble(lambda rauc: rauc.inspect(f"{bench.path}/none.raucb"))
    assert error.trouble is Trouble.NO_FILE


def test_another_machines_bundle(bench: Bench) -> None:
    info = bench.use(lambda rauc: rauc.inspect(f"{bench.path}/arm.raucb"))
    assert info.compatible == "skerry-arm"
    assert info.compatible != bench.use(lambda rauc: rauc.compatible())


def test_progress_comes_and_a_failure_never_shows_the_whole(bench: Bench) -> None:
    seen: list[Progress] = []
    bench.trouble(lambda rauc: rauc.install(f"{bench.path}/foreign.raucb", on_progress=seen.append))
    assert seen
    assert seen[0].percent == 0
    assert max(progress.percent for progress in seen) < 100
