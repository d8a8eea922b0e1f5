"""tests/vectors/token.json holds other implementations, and later versions, to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from provisioning import codec
from provisioning.identity import IdentityRecord, read_identity, write_identity
from provisioning.keys import Context, id_text, sign, wireguard_public_key
from provisioning.membership import make_certificate, node_id, verify_certificate
from provisioning.network import NetworkInfo, record_of
from provisioning.settings import settings_from
from provisioning.token import (
    PAYLOAD_LIMIT,
    Token,
    TokenError,
    TokenFault,
    TokenRecord,
    make_token,
    wrap,
)

VECTORS = json.loads((Path(__file__).resolve().parents[1] / "vectors" / "token.json").read_text())
ACCEPTED = pytest.mark.parametrize(
    "vector", VECTORS["accepted"], ids=[one["name"] for one in VECTORS["accepted"]]
)


class Inputs:
    """A vector's inputs as our types."""

    def __init__(self, vector: dict[str, Any]) -> None:
        given, out = vector["inputs"], vector["outputs"]
        self.given = given
        self.settings = settings_from(
            {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given["settings"].items()
            }
        )
        self.network = NetworkInfo(
            given["network"],
            bytes.fromhex(out["root_key"]),
            self.raw("otp_seed"),
            given["epoch"],
            self.settings,
        )

    def raw(self, name: str) -> bytes:
        return bytes.fromhex(self.given[name])

    def token(self) -> Token:
        given = self.given
        return make_token(
            self.network,
            self.raw("root_seed"),
            now=given["issued"],
            roles=frozenset(given["roles"]),
            labels=given["labels"],
            expires=given["expires"],
            count=given["count"],
            founder=given["founder"],
            grant_seed=self.raw("grant_seed"),
        )

    def certificate(self) -> bytes:
        return make_certificate(
            self.network,
            self.token().grant,
            self.raw("grant_seed"),
            node_seed=self.raw("node_seed"),
            wg_key=wireguard_public_key(self.raw("wireguard_private")),
            name=self.given["node_name"],
            issued=self.given["certificate_issued"],
        )


@ACCEPTED
def test_inputs_give_the_outputs(vector: dict[str, Any]) -> None:
    inputs, out = Inputs(vector), vector["outputs"]
    token = inputs.token()
    assert token.text() == out["token"]
    assert token.grant.record.hex() == out["grant"]
    assert token.grant.key.hex() == out["grant_key"]
    assert token.grant.grant_id.hex() == out["grant_id"]
    assert inputs.network.network_id.hex() == out["network_id"]
    assert id_text(inputs.network.network_id) == out["network_id_text"]
    assert inputs.certificate().hex() == out["certificate"]
    assert (
        sign(Context.MESSAGE, inputs.raw("node_seed"), bytes.fromhex(out["message"])).hex()
        == out["message_signature"]
    )
    record = IdentityRecord(
        inputs.raw("node_seed"),
        inputs.raw("wireguard_private"),
        inputs.certificate(),
        record_of(inputs.network),
    )
    assert write_identity(record).hex() == out["identity_file"]


@ACCEPTED
def test_outputs_give_the_inputs_back(vector: dict[str, Any]) -> None:
    inputs, out = Inputs(vector), vector["outputs"]
    token = Token.parse(out["token"])
    given = vector["inputs"]
    assert token.network == inputs.network
    assert token.grant_seed == inputs.raw("grant_seed")
    assert sorted(token.grant.roles) == given["roles"]
    assert token.grant.labels == given["labels"]
    assert (token.grant.founder, token.grant.issued, token.grant.expires, token.grant.count) == (
        given["founder"],
        given["issued"],
        given["expires"],
        given["count"],
    )
    payload = bytes.fromhex(out["token_payload"])
    assert wrap(1, payload) == out["token"]
    assert codec.encode(codec.decode(payload, TokenRecord, limit=PAYLOAD_LIMIT)) == payload
    member = verify_certificate(
        bytes.fromhex(out["certificate"]),
        network=inputs.network,
        now=given["issued"],
        admitted=lambda _: False,
    )
    assert member.node_id.hex() == out["node_id"] == node_id(member.node_key).hex()
    assert member.id_text == out["node_id_text"]
    assert member.node_key.hex() == out["node_key"]
    assert member.wg_key.hex() == out["wireguard_key"]
    assert member.verify(bytes.fromhex(out["message"]), bytes.fromhex(out["message_signature"]))
    identity = read_identity(bytes.fromhex(out["identity_file"]))
    assert identity.member() == member
    assert identity.wg_private == inputs.raw("wireguard_private")
    assert identity.network == inputs.network


@pytest.mark.parametrize(
    "vector", VECTORS["refused"], ids=[one["name"] for one in VECTORS["refused"]]
)
def test_what_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(TokenError) as caught:
        Token.parse(vector["token"])
    assert caught.value.fault is TokenFault[vector["fault"]]
