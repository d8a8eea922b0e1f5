"""`skerry network` and `skerry token`, from the command line to the files and back."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning import operator_files
from provisioning.clusters import CLUSTER_LABEL, rivals
from provisioning.durations import expiry, moment_text
from provisioning.operator_files import (
    NetworkFilesError,
    PassphraseCost,
    create_network,
    open_network,
)
from provisioning.settings import Settings
from provisioning.token import Token
from skerry.__main__ import main
from skerry.errors import UsageError

NOW = 1_795_000_000
CHEAP = PassphraseCost(1, 8192)
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: Captured, *words: str) -> tuple[int, str, str]:
    status = main(words)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return status, output.out, output.err


def refused(capsys: Captured, *words: str) -> str:
    status, out, err = run(capsys, *words)
    assert status in {1, 2}
    assert not out
    assert err.startswith("skerry: ")
    return err


def test_from_a_network_to_a_token_and_back(capsys: Captured, home: Path) -> None:
    status, _, err = run(
        capsys,
        "network",
        "new",
        "home",
        "--no-dht",
        "--peer",
        "a.example:1",
        "--peer",
        "[2001:db8::1]:2",
        "--host-range",
        "10.77.0.0/16",
    )
    assert status == 0
    assert "root.key safe" in err
    status, out, _ = run(
        capsys,
        "token",
        "new",
        "--label",
        "site=berlin",
        "--role",
        "agent",
        "--expires",
        "12h",
        "--count",
        "2",
        "--json",
    )
    assert status == 0
    made = json.loads(out)
    token = Token.parse(made["token"])
    assert token.network.settings == Settings(
        dht=False, peers=("a.example:1", "[2001:db8::1]:2"), host_range="10.77.0.0/16"
    )
    assert made["roles"] == ["agent"]
    assert made["expires"] - made["issued"] == 12 * 3600
    (home / "t.txt").write_text(made["token"])
    _, out, _ = run(capsys, "token", "show", "t.txt", "--json")
    shown = json.loads(out)
    assert shown == {name: value for name, value in made.items() if name != "token"}
    _, out, _ = run(capsys, "token", "show", made["token"].lower())
    assert "site=berlin" in out
    assert made["token"] not in out
    assert token.network.otp_seed.hex() not in out


def test_the_token_alone_goes_to_standard_output(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "network", "new", "home")
    _, out, err = run(capsys, "token", "new", "--expires", "never")
    assert out.startswith("SKERRY1-")
    assert out.count("\n") == 1
    assert "forever" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(out.encode())))
    _, shown, _ = run(capsys, "token", "show", "-")
    assert "never" in shown


def test_files_are_the_owners_only_and_never_overwritten(capsys: Captured, home: Path) -> None:
    run(capsys, "network", "new", "home", "--dir", "here")
    directory = home / "here"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert sorted(before) == ["network.json", "root.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert "never overwritten" in refused(capsys, "network", "new", "x", "--dir", "here")
    (directory / "network.json").unlink()
    assert "never overwritten" in refused(capsys, "network", "new", "x", "--dir", "here")
    assert (directory / "root.key").read_bytes() == before["root.key"]


def test_a_network_is_found_by_directory_by_name_or_because_it_is_the_only_one(
    capsys: Captured,
) -> None:
    assert "no network" in refused(capsys, "token", "new")
    run(capsys, "network", "new", "home")
    run(capsys, "network", "new", "lab", "--dir", "elsewhere")
    for words in ([], ["--network", "home"]):
        _, out, _ = run(capsys, "token", "new", "--json", *words)
        assert json.loads(out)["network"] == "home"
    _, out, _ = run(capsys, "token", "new", "--json", "--network", "elsewhere")
    assert json.loads(out)["network"] == "lab"
    run(capsys, "network", "new", "second")
    assert "several networks: home, second" in refused(capsys, "token", "new")
    assert "no network in 'third'" in refused(capsys, "token", "new", "--network", "third")


@pytest.mark.parametrize(
    "words",
    [
        ["network", "new", "Home"],
        ["network", "new", "home", "--peer", "x"],
        ["network", "new", "home", "--host-range", "10.10.0.1/16"],
        ["network", "new", "home", "--host-range", "10.244.0.0/15"],
        ["network", "new", "home", "--service-cidr", "10.244.0.0/20"],
        ["network", "new", "home", "--node-bits", "13"],
        ["network", "new", "home", "--servers", "2"],
        ["network", "new", "home", "--expected-nodes", "257"],
        ["network", "new", "home", "--update-server", "ftp://x"],
        ["network", "new", "home", "--passphrase-file", "missing"],
        ["network", "show", "nowhere"],
        ["token", "show", ""],
        ["token", "show", "missing.txt"],
        ["token", "show", "."],
        ["token", "show", "SKERRY1-ABC"],
        ["token", "qr", "x\0y"],
        ["flash", "missing.img", "out.img"],
        ["flash", "missing.img", "out.img", "--token", "x"],
    ],
)
def test_bad_words_are_refused_in_words(capsys: Captured, home: Path, words: list[str]) -> None:
    refused(capsys, *words)
    assert not list(home.iterdir())


def test_a_setting_is_named_as_it_is_typed(capsys: Captured, home: Path) -> None:
    said = refused(capsys, "network", "new", "home", "--expected-nodes", "300")
    assert "--expected-nodes 300: --pod-cidr 10.244.0.0/16 with --node-bits 8" in said
    assert "choose --node-bits 9" in said
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["--expires", "yesterday"],
        ["--expires", "2020-01-01"],
        ["--count", "0"],
        ["--count", "9999999999"],
        ["--count", "9" * 30],
        ["--role", "none", "--role", "server"],
        ["--founder", "--role", "agent"],
        ["--founder", "--role", "none"],
        ["--label", "x"],
        ["--label", "=x"],
        ["--label", "a=1", "--label", "a=2"],
        ["--label", "skerry.internal/operator=1"],
        ["--cluster", "blue"],
        ["--label", "a=" + "x" * 64],
    ],
)
def test_bad_grants_are_refused_in_words(capsys: Captured, words: list[str]) -> None:
    run(capsys, "network", "new", "home")
    refused(capsys, "token", "new", *words)


def test_a_founders_token_is_for_one_machine(capsys: Captured) -> None:
    _, _, err = run(capsys, "network", "new", "home")
    assert "skerry cluster found NODE" in err
    _, out, err = run(capsys, "token", "new", "--founder", "--json")
    token = json.loads(out)
    assert (token["founder"], token["count"]) == (True, 1)
    assert "one founder" in refused(capsys, "token", "new", "--founder", "--count", "3")
    _, _, err = run(capsys, "network", "new", "four", "--expected-nodes", "4")
    assert "cluster found" not in err
    _, _, err = run(capsys, "network", "new", "alone", "--expected-nodes", "1")
    assert "skerry cluster found NODE" in err  # a majority of one founds nothing


def test_servers_without_a_tunnel_are_told_of_the_address_that_they_lack(capsys: Captured) -> None:
    words = ("--expected-nodes", "3", "--servers", "3", "--no-vpn")
    _, _, err = run(capsys, "network", "new", "bare", *words)
    assert "without --api-address no address follows" in err
    _, out, err = run(capsys, "network", "new", "lan", *words, "--api-address", "192.168.1.250")
    assert "--api-address" not in err
    assert "cannot" not in out
    said = refused(capsys, "network", "new", "tunnel", "--api-address", "192.168.1.250")
    assert "for networks without the tunnel" in said


def test_a_cluster_of_its_own_has_a_range_of_services_or_another_name(capsys: Captured) -> None:
    run(capsys, "network", "new", "home", "--cluster-bits", "2")
    _, out, _ = run(capsys, "token", "new", "--json", "--cluster", "blue", "--label", "site=attic")
    assert json.loads(out)["labels"] == {CLUSTER_LABEL: "blue", "site": "attic"}
    run(capsys, "token", "new", "--cluster", "blue")
    assert "cannot be the name" in refused(capsys, "token", "new", "--cluster", "Blue!")
    settings = Settings(cluster_bits=2)
    other = next(name for name in "abcdefgh" if rivals(settings, name, ["blue"]))
    said = refused(capsys, "token", "new", "--cluster", other)
    assert f"the cluster {other} would have the services' range of blue: 10.96." in said
    free = next(name for name in "abcdefgh" if not rivals(settings, name, ["blue"]))
    run(capsys, "token", "new", "--cluster", free)


def test_a_sealed_root_key_needs_its_passphrase(
    capsys: Captured, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        operator_files,
        "PassphraseCost",
        lambda *given: CHEAP if not given else PassphraseCost(*given),
    )
    (home / "right").write_text("correct horse\n")
    (home / "wrong").write_text("battery\n")
    (home / "empty").write_text("\n")
    run(capsys, "network", "new", "home", "--passphrase-file", "right")
    key = json.loads((home / "config/skerry/networks/home/root.key").read_text())
    assert "seed" not in key
    assert key["kdf"] == "argon2id"
    status, out, _ = run(capsys, "token", "new", "--passphrase-file", "right")
    assert status == 0
    assert Token.parse(out).network.name == "home"
    assert "wrong" in refused(capsys, "token", "new", "--passphrase-file", "wrong")
    assert "empty" in refused(capsys, "token", "new", "--passphrase-file", "empty")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "--passphrase-file" in refused(capsys, "token", "new")


def test_what_argon2id_costs_by_default_is_what_libsodium_calls_moderate() -> None:
    from nacl.pwhash import argon2id

    assert PassphraseCost() == PassphraseCost(
        argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE
    )


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"format": 2}',
        b'{"format": 1, "seed": "AAAA"}',
        b'{"format": 1, "seed": 7}',
        b'{"format": 1, "kdf": "argon2id", "operations": 1, "memory": 99999999999999, '
        b'"salt": "", "box": ""}',
        b'{"format": 1, "kdf": "argon2id", "operations": 1, "memory": 8192, "salt": "AA==", '
        b'"box": ""}',
        b'{"format": 1, "seed": "' + b"A" * 70_000 + b'"}',
    ],
)
def test_a_damaged_root_key_is_said(home: Path, damage: bytes) -> None:
    create_network(home / "n", "home", Settings())
    (home / "n/root.key").write_bytes(damage)
    with pytest.raises(NetworkFilesError):
        open_network(home / "n", lambda: "x")


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format": 1, "name": 5}', b'{"format": 9}'])
def test_a_damaged_network_file_is_said(home: Path, damage: bytes) -> None:
    create_network(home / "n", "home", Settings())
    (home / "n/network.json").write_bytes(damage)
    with pytest.raises(NetworkFilesError):
        open_network(home / "n", lambda: "x")


def test_a_root_key_of_another_network_is_refused(home: Path) -> None:
    create_network(home / "one", "one", Settings())
    create_network(home / "two", "two", Settings())
    (home / "two/root.key").replace(home / "one/root.key")
    with pytest.raises(NetworkFilesError, match="not the root key of network one"):
        open_network(home / "one", lambda: "x")


def test_a_code_is_drawn_or_written_for_the_owner_only(capsys: Captured, home: Path) -> None:
    run(capsys, "network", "new", "home")
    _, out, _ = run(capsys, "token", "new")
    (home / "t").write_text(out)
    _, drawn, _ = run(capsys, "token", "qr", "t")
    assert len(drawn.splitlines()) < 50
    assert max(map(len, drawn.splitlines())) < 110
    for flag, name, magic in (("--png", "a.png", b"\x89PNG"), ("--svg", "a.svg", b"<?xml")):
        assert run(capsys, "token", "qr", "t", flag, name)[0] == 0
        assert (home / name).read_bytes().startswith(magic)
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
        refused(capsys, "token", "qr", "t", flag, name)


def test_what_units_run_is_not_listed_for_people(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["token", "--help"])
    assert "media" not in capsys.readouterr().out
    refused(capsys, "token", "import-media", "/dev/null")
    refused(capsys, "token", "wipe-media", "/nowhere")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("never", None),
        ("90s", NOW + 90),
        ("30d", NOW + 30 * 86400),
        ("2w", NOW + 14 * 86400),
        ("2026-12-01", 1_796_083_200),
        ("2026-12-01T10:00+02:00", 1_796_112_000),
    ],
)
def test_expiries(text: str, end: int | None) -> None:
    assert expiry(text, NOW) == end


@given(st.text(max_size=12))
def test_no_expiry_breaks_the_reader(text: str) -> None:
    try:
        end = expiry(text, NOW)
    except UsageError:
        return
    assert end is None or end > NOW


def test_moments_are_read_in_utc() -> None:
    assert moment_text(NOW) == "2026-11-18 11:06 UTC"
