"""What the daemon does to the kernel, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.programs import RefusedError
from appliance.services import daemon
from appliance.services import kernel as real
from appliance.services.daemon import AGAIN_SECONDS, Daemon, Places
from appliance.services.errors import ServiceError
from appliance.services.plan import Plan, Way

ONE = Way(False, "198.19.1.1", "tcp", 80, (("10.10.0.2", 80),))  # noqa: FBT003
INWARD = Way(True, "10.10.0.1", "tcp", 80, (("192.168.1.9", 80),))  # noqa: FBT003
REFUSED = Way(True, "10.10.0.1", "tcp", 80, ())  # noqa: FBT003


@dataclass
class FakeKernel:
    calls: list[str] = field(default_factory=list)
    fails: bool = False
    guarded: bool = False

    def route(self) -> None:
        self.calls.append("route")

    def is_ours(self, _: Path, *, needed: bool) -> bool:
        return needed

    def forward(self) -> None:
        self.calls.append("forward")

    def apply(self, ways: tuple[Way, ...], _: str, __: str, *, guarded: bool) -> None:
        self.calls.append(f"apply {len(ways)}")
        self.guarded = guarded

    def tidy(self, ways: tuple[Way, ...]) -> None:
        self.calls.append(f"tidy {len(ways)}")
        if self.fails:
            raise RefusedError("laying the rules of services: nft says: busy")

    def forget(self, gone: set[tuple[str, str, int]]) -> None:
        if gone:
            self.calls.append(f"forget {len(gone)}")

    def took(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    made = FakeKernel()
    monkeypatch.setattr(daemon, "kernel", made)
    return made


def test_a_change_is_cleared_up_after_at_the_next_turn(kernel: FakeKernel, tmp_path: Path) -> None:
    now = [0.0]
    one = Daemon(Places(run_dir=tmp_path), clock=lambda: now[0])

    def turn(*ways: Way) -> list[str]:
        one._apply(Plan((), ways), "skerry0", "10.10.0.1")
        return kernel.took()

    assert turn(ONE) == ["route", "apply 1"]
    assert turn(ONE) == ["tidy 1"]
    assert turn(ONE) == []
    # What goes is still there while packets may be under way to it.
    assert turn() == ["apply 0", "forget 1"]
    kernel.fails = True
    assert turn(ONE) == ["tidy 0", "route", "apply 1"]
    assert turn(ONE) == ["tidy 1"]
    assert turn(ONE) == []
    now[0] = AGAIN_SECONDS
    assert turn(ONE) == ["route", "apply 1"]


def test_forwarding_is_for_what_leads_on_and_begins_behind_its_guard(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    one = Daemon(Places(run_dir=tmp_path), clock=lambda: 0.0)
    for ways, calls, guarded in (
        ((REFUSED,), ["route", "apply 1"], False),
        ((INWARD,), ["tidy 1", "route", "apply 1", "forward"], True),
    ):
        one._apply(Plan((), ways), "skerry0", "10.10.0.1")
        assert (kernel.took(), kernel.guarded) == (calls, guarded)


def test_what_the_node_forwarded_before_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch, marker = tmp_path / "ip_forward", tmp_path / "ours"
    monkeypatch.setattr(real, "_FORWARD", switch)
    switch.write_text("1\n")
    assert not real.is_ours(marker, needed=True)
    real.forward()
    assert switch.read_text() == "1\n"
    switch.write_text("0\n")
    assert not real.is_ours(marker, needed=False)
    assert real.is_ours(marker, needed=True)
    assert switch.read_text() == "0\n"
    real.forward()
    assert switch.read_text() == "1"
    # Until the next boot, in which there is no mark.
    assert real.is_ours(marker, needed=False)
    monkeypatch.setattr(real, "_FORWARD", tmp_path / "none" / "x")
    with pytest.raises(ServiceError):
        real.is_ours(marker, needed=True)
    with pytest.raises(ServiceError):
        real.forward()
