"""The identity on the disk: made once, kept twice, repaired, never half there."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning import codec, files
from provisioning.errors import FormatError, ProvisioningError
from provisioning.identity import (
    FILE_LIMIT,
    FIRST,
    SECOND,
    Identity,
    IdentityError,
    IdentityRecord,
    IdentityStore,
    new_identity,
    read_identity,
    write_identity,
)
from provisioning.keys import public_key
from provisioning.membership import verify_certificate
from provisioning.network import NetworkInfo, NetworkRecord
from provisioning.settings import Settings
from provisioning.token import TokenError, TokenFault, make_token

ROOT = b"\x01" * 32
NOW = 1_795_000_000
TOKEN = make_token(
    NetworkInfo("home", public_key(ROOT), b"\x02" * 32, 4, Settings(mdns=False)),
    ROOT,
    now=NOW,
    expires=NOW + 100,
    grant_seed=b"\x03" * 32,
)
BLOB = write_identity(new_identity(TOKEN, name="kitchen", now=NOW))


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    return IdentityStore(tmp_path / "identity")


@pytest.fixture
def made(store: IdentityStore) -> Identity:
    return store.create(TOKEN, name="kitchen", now=NOW)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nothing_there_is_not_an_error(store: IdentityStore) -> None:
    assert store.load() is None
    assert not store.notices


def test_what_is_made_is_what_is_loaded(store: IdentityStore, made: Identity) -> None:
    assert IdentityStore(store.directory).load() == made
    assert made.name == "kitchen"
    assert made.network == TOKEN.network
    assert made.time_floor == NOW
    assert (
        verify_certificate(
            made.certificate, network=TOKEN.network, now=NOW, admitted=lambda _: False
        )
        == made.member()
    )


@pytest.mark.usefixtures("made")
def test_only_the_owner_can_read_it(store: IdentityStore) -> None:
    assert mode(store.directory) == 0o700
    assert sorted(path.name for path in store.directory.iterdir()) == [SECOND, FIRST]
    assert {mode(path) for path in store.directory.iterdir()} == {0o600}


@pytest.mark.usefixtures("made")
def test_the_grants_key_is_forgotten(store: IdentityStore) -> None:
    for path in store.directory.iterdir():
        assert TOKEN.grant_seed not in path.read_bytes()


def test_a_node_without_a_name_is_called_after_its_id(store: IdentityStore) -> None:
    identity = store.create(TOKEN, name=None, now=NOW)
    assert identity.name == f"skerry-{identity.id_text[:6]}"


def test_two_nodes_of_one_token_share_no_key() -> None:
    first, second = (
        read_identity(write_identity(new_identity(TOKEN, name=None, now=NOW))) for _ in range(2)
    )
    assert first.node_id != second.node_id
    assert first.wg_private != second.wg_private


def test_a_signature_convinces_peers_and_only_of_what_was_signed(made: Identity) -> None:
    signature = made.sign(b"hello")
    assert made.member().verify(b"hello", signature)
    assert not made.member().verify(b"hullo", signature)
    assert not made.member().verify(b"hello", bytes([signature[0] ^ 1]) + signature[1:])


def test_no_secret_is_shown(made: Identity) -> None:
    record = codec.decode(BLOB[22:-32], IdentityRecord, limit=FILE_LIMIT)
    shown = repr(made) + repr(read_identity(BLOB))
    for secret in (made.wg_private, TOKEN.network.otp_seed, record.node_seed, record.wg_private):
        assert repr(secret)[2:-1] not in shown


def test_a_second_identity_is_refused(store: IdentityStore, made: Identity) -> None:
    with pytest.raises(IdentityError, match="already is kitchen of network home"):
        store.create(TOKEN, name="other", now=NOW)
    assert store.load() == made


def test_an_expired_token_makes_no_identity_and_a_clock_in_1970_does(store: IdentityStore) -> None:
    with pytest.raises(TokenError) as caught:
        store.create(TOKEN, name=None, now=NOW + 100)
    assert caught.value.fault is TokenFault.EXPIRED
    assert not store.directory.exists()
    assert store.create(TOKEN, name=None, now=0).time_floor == NOW


@pytest.mark.parametrize("name", ["Upper", "-x", "x" * 64, "a.b", "a/b", "ä"])
def test_a_bad_name_is_refused(store: IdentityStore, name: str) -> None:
    with pytest.raises(ProvisioningError, match="cannot be the name"):
        store.create(TOKEN, name=name, now=NOW)
    assert not store.directory.exists()


@pytest.mark.parametrize("name", [FIRST, SECOND])
@pytest.mark.parametrize("damage", [b"", b"rubbish", BLOB[:-1], BLOB[:-40] + bytes(40), None])
def test_one_damaged_copy_is_repaired_from_the_other(
    store: IdentityStore, made: Identity, name: str, damage: bytes | None
) -> None:
    path = store.directory / name
    good = path.read_bytes()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert store.load() == made
    assert len(store.notices) == 1
    assert name in store.notices[0]
    assert path.read_bytes() == good
    assert store.load() == made
    assert not store.notices
    aside = [one for one in store.directory.iterdir() if ".damaged-" in one.name]
    assert [one.read_bytes() for one in aside] == ([] if damage is None else [damage])


def test_both_damaged_are_kept_aside_and_the_loss_is_named(
    store: IdentityStore, made: Identity
) -> None:
    for name in (FIRST, SECOND):
        (store.directory / name).write_bytes(b"rubbish")
    with pytest.raises(IdentityError, match="Lost are its keys") as caught:
        store.load()
    assert "token again" in str(caught.value.hint)
    kept = sorted(path.name for path in store.directory.iterdir())
    assert kept == [f"{SECOND}.damaged-1", f"{FIRST}.damaged-1"]
    assert store.load() is None
    assert store.create(TOKEN, name="again", now=NOW).node_id != made.node_id


def test_the_first_of_two_good_copies_counts(store: IdentityStore, made: Identity) -> None:
    (store.directory / SECOND).write_bytes(BLOB)
    assert store.load() == made
    assert "another state" in store.notices[0]
    assert (store.directory / SECOND).read_bytes() == (store.directory / FIRST).read_bytes()


def test_a_link_in_place_of_the_identity_is_not_followed(
    store: IdentityStore, made: Identity, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(BLOB)
    (store.directory / FIRST).unlink()
    (store.directory / FIRST).symlink_to(elsewhere)
    assert store.load() == made
    assert "symbolic link" in store.notices[0]
    assert elsewhere.read_bytes() == BLOB


def test_wrong_permissions_are_tightened_and_said(store: IdentityStore, made: Identity) -> None:
    store.directory.chmod(0o755)
    (store.directory / FIRST).chmod(0o644)
    assert store.load() == made
    assert len(store.notices) == 2
    assert mode(store.directory) == 0o700
    assert mode(store.directory / FIRST) == 0o600


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_nothing_half_written(
    store: IdentityStore, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IdentityError, match="No space left") as caught:
        store.create(TOKEN, name=None, now=NOW)
    assert "free some space" in str(caught.value.hint)
    assert list(store.directory.iterdir()) == []
    monkeypatch.undo()
    assert store.load() is None
    assert store.create(TOKEN, name=None, now=NOW) == store.load()


def test_a_repair_that_cannot_be_written_still_loads(
    store: IdentityStore, made: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.directory / FIRST).unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_write_durably", full)
    assert store.load() == made
    assert "could not be restored" in store.notices[1]


@pytest.mark.usefixtures("made")
def test_a_newer_format_is_kept_and_named(store: IdentityStore) -> None:
    content = BLOB[:16] + b"\x00\x02" + BLOB[18:-32]
    newer = content + hashlib.sha256(content).digest()
    for name in (FIRST, SECOND):
        (store.directory / name).write_bytes(newer)
    with pytest.raises(IdentityError, match="format 2") as caught:
        store.load()
    assert "other slot" in str(caught.value.hint)
    assert (store.directory / FIRST).read_bytes() == newer
    assert (store.directory / SECOND).read_bytes() == newer


def test_settings_of_a_newer_version_survive_a_roll_back() -> None:
    record = new_identity(TOKEN, name=None, now=NOW)
    network = record.network
    newer = NetworkRecord(
        network.name,
        network.root_key,
        network.otp_seed,
        network.epoch,
        {**network.settings, "from_the_future": True},
    )
    blob = write_identity(
        IdentityRecord(record.node_seed, record.wg_private, record.certificate, newer)
    )
    assert read_identity(blob).network == TOKEN.network


def test_keys_that_are_not_the_certificates_are_refused() -> None:
    one, other = (new_identity(TOKEN, name=None, now=NOW) for _ in range(2))
    for mixed in (
        IdentityRecord(other.node_seed, one.wg_private, one.certificate, one.network),
        IdentityRecord(one.node_seed, other.wg_private, one.certificate, one.network),
        IdentityRecord(b"", one.wg_private, one.certificate, one.network),
    ):
        with pytest.raises(FormatError):
            read_identity(write_identity(mixed))


@given(st.integers(0, len(BLOB) * 8 - 1))
def test_no_flipped_bit_goes_unnoticed(bit: int) -> None:
    flipped = bytearray(BLOB)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        read_identity(bytes(flipped))


@given(st.binary(max_size=600))
def test_rubbish_is_no_identity(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_identity(data)
