"""Tokens: what goes in comes out, and whatever else is refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.keys import public_key
from provisioning.network import NetworkInfo
from provisioning.settings import Settings
from provisioning.token import (
    PAYLOAD_LIMIT,
    TEXT_LIMIT,
    Token,
    TokenError,
    TokenFault,
    make_token,
    wrap,
)

ROOT = b"\x01" * 32
NOW = 1_795_000_000


def network(settings: Settings | None = None) -> NetworkInfo:
    return NetworkInfo("home", public_key(ROOT), b"\x02" * 32, 0, settings or Settings())


TOKEN = make_token(
    network(), ROOT, now=NOW, labels={"site": "berlin"}, expires=NOW + 86400, grant_seed=b"\3" * 32
)
TEXT = TOKEN.text()


def fault_of(text: str | bytes) -> TokenFault:
    with pytest.raises(TokenError) as caught:
        Token.parse(text)
    assert caught.value.hint
    assert str(text).strip().upper()[10:] not in str(caught.value).upper() or len(text) < 20
    return caught.value.fault


@pytest.mark.parametrize(
    "spelling",
    [
        TEXT,
        TEXT.lower(),
        f"\ufeff  {TEXT}\r\n",
        TEXT.encode(),
        TEXT.encode("utf-16"),
        "\n".join(TEXT[start : start + 20] for start in range(0, len(TEXT), 20)),
        "-".join(TEXT[start : start + 5] for start in range(0, len(TEXT), 5)),
        TEXT.replace("-", "\u2013"),
        f'"{TEXT}"',
        TEXT + "===",
    ],
)
def test_every_spelling_that_people_produce_is_read(spelling: str | bytes) -> None:
    assert Token.parse(spelling) == TOKEN


def test_the_text_holds_everything_and_fits_a_code_of_version_20() -> None:
    import segno

    token = Token.parse(TEXT)
    assert token.grant.labels == {"site": "berlin"}
    assert token.grant.roles == {"auto"}
    assert (token.grant.issued, token.grant.expires) == (NOW, NOW + 86400)
    assert token.network == network()
    code = segno.make_qr(TEXT, error="m", boost_error=False)
    assert code.mode == "alphanumeric"
    assert isinstance(code.version, int)
    assert code.version <= 14


def test_the_largest_token_still_fits_one_code() -> None:
    import segno

    code = segno.make_qr(wrap(1, b"\xff" * PAYLOAD_LIMIT), error="m", boost_error=False)
    assert code.error == "M"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", TokenFault.EMPTY),
        (" \r\n-\ufeff", TokenFault.EMPTY),
        ("hello", TokenFault.FOREIGN),
        (b"\x7fELF\x00\xff\xfe", TokenFault.FOREIGN),
        ("eyJhbGciOiJIUzI1NiJ9.e30.x", TokenFault.FOREIGN),
        ("A" * (TEXT_LIMIT + 1), TokenFault.OVERSIZED),
        (TEXT[:-1], TokenFault.TRUNCATED),
        (TEXT[:-8], TokenFault.TRUNCATED),
        (TEXT[: len(TEXT) // 2], TokenFault.TRUNCATED),
        (TEXT[:9], TokenFault.TRUNCATED),
        ("SKERRY1-", TokenFault.TRUNCATED),
        (TEXT + "AAAAAAAA", TokenFault.DAMAGED),
        (TEXT[:50] + ("B" if TEXT[50] != "B" else "C") + TEXT[51:], TokenFault.DAMAGED),
        (TEXT[:50] + "8" + TEXT[51:], TokenFault.DAMAGED),
        (TEXT[:50] + "ß" + TEXT[51:], TokenFault.DAMAGED),
        (TEXT.replace("SKERRY1", "SKERRY2"), TokenFault.DAMAGED),
        (wrap(2, b"\x01whatever"), TokenFault.NEWER_VERSION),
        (wrap(0, b"\x01whatever"), TokenFault.OLDER_VERSION),
        (wrap(1, b""), TokenFault.STRUCTURE),
        (wrap(1, b"\x93\x01\x02\x03"), TokenFault.STRUCTURE),
        (wrap(1, b"\x91" * 2000), TokenFault.STRUCTURE),
    ],
)
def test_each_kind_of_bad_token_has_its_own_message(text: str | bytes, fault: TokenFault) -> None:
    assert fault_of(text) is fault


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_no_single_wrong_character_goes_unnoticed(place: int, letter: str) -> None:
    changed = TEXT[:place] + letter + TEXT[place + 1 :]
    if letter != TEXT[place] and place != TEXT.index("-"):
        fault_of(changed)


@given(st.one_of(st.text(), st.binary(), st.binary().map(lambda raw: wrap(1, raw))))
def test_rubbish_is_refused_without_a_traceback(rubbish: str | bytes) -> None:
    fault_of(rubbish)


def test_a_grant_of_another_root_is_refused() -> None:
    other = NetworkInfo("home", public_key(b"\x09" * 32), b"\x02" * 32)
    forged = Token(other, TOKEN.grant, TOKEN.grant_seed)
    assert fault_of(forged.text()) is TokenFault.FORGED_GRANT


def test_a_key_that_is_not_the_grants_is_refused() -> None:
    assert fault_of(Token(network(), TOKEN.grant, b"\x04" * 32).text()) is TokenFault.STRUCTURE


def test_secrets_stay_out_of_reprs() -> None:
    shown = repr(TOKEN)
    assert repr(TOKEN.grant_seed) not in shown
    assert repr(TOKEN.network.otp_seed) not in shown


def test_expiry_is_judged_by_the_clock_given() -> None:
    TOKEN.check_time(0)
    TOKEN.check_time(NOW + 86399)
    with pytest.raises(TokenError, match="expired at 2026-11-19") as caught:
        TOKEN.check_time(NOW + 86400)
    assert caught.value.fault is TokenFault.EXPIRED


def test_a_token_that_would_be_too_large_is_not_made() -> None:
    large = network(Settings(peers=tuple(f"host-{number:0200}:51820" for number in range(20))))
    with pytest.raises(TokenError, match="at most"):
        make_token(large, ROOT, now=NOW).text()
