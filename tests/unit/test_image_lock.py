"""The package lock: read, written, and what is done when the archive has moved on."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image import debs, packages
from image.board import Architecture
from image.errors import LockError
from image.lock import Drift, Lock, Package, Use, decide, drift, parse, render

A1 = Package("alpha", "1.0-1", "a" * 64)
A2 = Package("alpha", "1.0-2", "b" * 64)
B1 = Package("beta", "1:2~rc1+dfsg-3", "c" * 64)
F1 = Package("busybox-static", "1.37", "d" * 64, Use.FETCH)
LOCK = Lock("amd64", "cafe", (A1, B1, F1))

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.from_regex(r"\A[a-z0-9][a-z0-9+.-]{1,20}\Z")
versions = st.from_regex(r"\A[A-Za-z0-9.+~:-]{1,20}\Z")
locked_packages = st.lists(
    st.builds(Package, names, versions, hashes, st.sampled_from(Use)),
    min_size=1,
    max_size=8,
    unique_by=lambda item: item.name,
)


def never() -> Iterable[Package]:
    raise AssertionError("the archive was asked although the store has everything")


@settings(max_examples=40)
@given(locked_packages)
def test_what_is_written_is_read(items: list[Package]) -> None:
    lock = Lock("arm64", "f00d", tuple(sorted(items)))
    assert parse(render(lock), name="x") == lock


@given(st.text(max_size=300))
def test_no_text_makes_a_traceback(text: str) -> None:
    with pytest.raises(LockError) as caught:
        parse(text, name="the.lock")
    assert "the.lock" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("alpha 1.0", "line 4"),
        ("alpha 1.0 " + "a" * 63 + " install", "line 4"),
        ("alpha 1.0 " + "A" * 64 + " install", "line 4"),
        ("alpha 1.0 " + "a" * 64 + " keep", "none of install, kubernetes, fetch"),
        ("../evil 1.0 " + "a" * 64 + " install", "line 4"),
        ("alpha $(reboot) " + "a" * 64 + " install", "line 4"),
        ("beta 1.0 " + "a" * 64 + " install", "stands there twice"),
    ],
)
def test_a_wrong_line_is_named(line: str, said: str) -> None:
    text = f"# architecture: amd64\n# request: cafe\nbeta 1 {'c' * 64} install\n{line}\n"
    with pytest.raises(LockError, match=said):
        parse(text, name="x")


def test_a_full_store_needs_no_archive() -> None:
    decision = decide(LOCK, request="cafe", stored=lambda _: True, current=never, strict=True)
    assert decision.packages == LOCK.packages
    assert decision.drift == ()


def test_what_the_store_lacks_may_still_be_current() -> None:
    decision = decide(
        LOCK, request="cafe", stored={A1.sha256}.__contains__, current=lambda: (A2, B1, F1)
    )
    assert decision.packages == LOCK.packages, "alpha is stored, the others are current"
    assert decision.drift == ()


def test_what_is_gone_makes_the_whole_set_follow_the_archive() -> None:
    decision = decide(LOCK, request="cafe", stored=lambda _: False, current=lambda: (F1, B1, A2))
    assert decision.packages == (A2, B1, F1)
    assert decision.drift == (Drift("alpha", "1.0-1", "1.0-2"),)


def test_strict_refuses_to_follow_and_names_what_is_gone() -> None:
    with pytest.raises(LockError, match=r"alpha 1\.0-1") as caught:
        decide(
            LOCK, request="cafe", stored=lambda _: False, current=lambda: (A2, B1, F1), strict=True
        )
    assert "skerry image lock" in (caught.value.hint or "")


def test_strict_still_takes_what_is_current() -> None:
    decision = decide(
        LOCK, request="cafe", stored=lambda _: False, current=lambda: (A1, B1, F1), strict=True
    )
    assert decision.packages == LOCK.packages


def test_a_lock_of_another_request_is_not_used() -> None:
    decision = decide(LOCK, request="other", stored=lambda _: True, current=lambda: (A2, F1))
    assert decision.packages == (A2, F1)
    assert Drift("beta", B1.version, None) in decision.drift
    with pytest.raises(LockError, match="another package list"):
        decide(LOCK, request="other", stored=lambda _: True, current=never, strict=True)


def test_without_a_lock_the_archive_is_followed_unless_strict() -> None:
    decision = decide(None, request="cafe", stored=lambda _: False, current=lambda: (B1, A2))
    assert decision.packages == (A2, B1)
    with pytest.raises(LockError, match="no lock"):
        decide(None, request="cafe", stored=lambda _: True, current=never, strict=True)


def test_drift_names_new_gone_and_changed() -> None:
    assert drift((A1, B1), (A2, F1)) == (
        Drift("alpha", "1.0-1", "1.0-2"),
        Drift("beta", B1.version, None),
        Drift("busybox-static", None, "1.37"),
    )


@pytest.mark.parametrize("architecture", list(Architecture))
def test_the_committed_locks_answer_the_package_lists(architecture: Architecture) -> None:
    lock = debs.read_lock(architecture)
    assert lock is not None
    request = packages.request(architecture)
    assert lock.request == request.fingerprint, "run `skerry image lock`"
    by_name = {package.name: package for package in lock.packages}
    assert all(by_name[name].use is Use.INSTALL for name in request.installed)
    assert all(by_name[name].use is Use.FETCH for name in request.fetched)


def test_apts_offers_are_read() -> None:
    text = (
        "Reading package lists...\n"
        f"'http://host/a/alpha_1%3a1.0_amd64.deb' alpha_1%3a1.0-1_amd64.deb 12 SHA256:{'e' * 64}\n"
        f"'http://host/b/beta_2_all.deb' beta_2_all.deb 7 SHA256:{'f' * 64}\n"
        "'http://host/c/gamma_3_all.deb' gamma_3_all.deb 7 MD5Sum:00\n"
    )
    offers = debs.parse_offers(text, Use.FETCH)
    assert [package for package, _ in offers] == [
        Package("alpha", "1:1.0-1", "e" * 64, Use.FETCH),
        Package("beta", "2", "f" * 64, Use.FETCH),
    ]
    assert [name for _, name in offers] == ["alpha_1%3a1.0-1_amd64.deb", "beta_2_all.deb"]
