"""What an outsider on the LAN learns from the announcements: nothing."""

from __future__ import annotations

import base64
import re
import struct
import time
from pathlib import Path

import pytest

from provisioning.identity import Identity, IdentityStore
from tests.netns.lab import Lab, Network, Node, wait_until

pytestmark = pytest.mark.netns
SLOT_SECONDS = 8


def packets(file: Path) -> list[bytes]:
    data, found = file.read_bytes(), []
    while len(data) >= 2:
        (length,) = struct.unpack_from(">H", data)
        found.append(data[2 : 2 + length])
        data = data[2 + length :]
    return found


def labels(found: list[bytes]) -> set[bytes]:
    """Return the DNS labels of 15 letters and digits: how our names look."""
    return {name for packet in found for name in re.findall(rb"(?<=\x0f)[a-z2-7]{15}", packet)} | {
        name for packet in found for name in re.findall(rb"(?<=\x10_)[a-z2-7]{15}", packet)
    }


def secrets_of(identity: Identity) -> list[bytes]:
    member = identity.member()
    raw = [
        member.node_key,
        member.wg_key,
        identity.node_id,
        identity.network.network_id,
        identity.network.root_key,
        identity.network.otp_seed,
        member.grant_id,
    ]
    spelled = [
        *(one.hex().encode() for one in raw),
        *(base64.b32encode(one).rstrip(b"=").lower() for one in raw),
        *(base64.b64encode(one).rstrip(b"=") for one in raw),
    ]
    return [*(one[:8] for one in raw), *(one[:10] for one in spelled)]


def start(node: Node, identity_name: str, network: Network) -> Identity:
    identity = IdentityStore(node.state_dir / "identity").create(
        network.token(), name=identity_name, now=time.time()
    )
    node.start_module(
        "tests.netns.runner",
        *(str(node.state_dir), node.interface, str(node.lab.wireguard_go), str(SLOT_SECONDS)),
    )
    return identity


def test_announcements_tell_an_outsider_nothing_and_change_with_the_slot() -> None:
    with Lab() as lab:
        outsider, one, two = lab.node(), lab.node(), lab.node()
        file = outsider.folder / "packets"
        outsider.start_module("tests.netns.capture", str(file))
        wait_until(file.exists, 30, "the outsider listens")
        network = Network("lagoon")
        identities = [start(one, "heron", network), start(two, "egret", network)]
        wait_until(lambda: peers(one) == "egret" and peers(two) == "heron", 20, "they meet")
        wait_until(lambda: len(labels(packets(file))) >= 6, 30, "announcements are heard")
        first = labels(packets(file))
        heard = file.stat().st_size
        wait_until(lambda: len(labels(packets(file)) - first) >= 4, 20, "names have changed")
        everything = file.read_bytes()
        assert file.stat().st_size > heard
        lowered = everything.lower()
        for word in (b"skerry", b"lagoon", b"heron", b"egret", b"wireguard", b"node"):
            assert word not in lowered
        for identity in identities:
            for secret in secrets_of(identity):
                assert secret not in everything
                assert secret.lower() not in lowered
        # Every name in the announcements is one of ours by look: nothing else is told.
        assert peers(one) == "egret"
        assert peers(two) == "heron"


def peers(node: Node) -> str:
    file = node.state_dir / "peers"
    return file.read_text() if file.exists() else ""
