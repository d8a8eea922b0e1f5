"""A node that means no good: sends handshake messages of its own making to a member.

``python -m tests.netns.hostile CASE HOST PORT FILE``: FILE is an identity of the member's network,
its certificate is spoilt as the case says. Sent until the process is ended.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import time
from pathlib import Path

from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.frames import split
from appliance.overlay.handshake import Facts, Handshakes, Transmit
from appliance.overlay.otp import Seed
from appliance.overlay.seal import Sealer
from provisioning.grant import issue
from provisioning.identity import Identity, read_identity
from provisioning.keys import public_key
from provisioning.membership import make_certificate

PAUSE_SECONDS = 0.5
REPEAT = 120


def tampered(identity: Identity) -> Identity:
    """Return an identity whose certificate has a flipped bit in the grant's signature of it."""
    certificate = bytearray(identity.certificate)
    certificate[-100] ^= 1
    return dataclasses.replace(identity, certificate=bytes(certificate))


def forged(identity: Identity) -> Identity:
    """Return an identity whose grant another root key has signed."""
    grant_seed, member = os.urandom(32), identity.member()
    grant = issue(
        os.urandom(32),
        public_key(grant_seed),
        roles=member.roles,
        labels={},
        issued=int(time.time()),
    )
    certificate = make_certificate(
        identity.network,
        grant,
        grant_seed,
        node_seed=identity._node_seed,
        wg_key=member.wg_key,
        name=member.name,
        issued=int(time.time()),
    )
    return dataclasses.replace(identity, certificate=certificate)


def main(case: str, host: str, port: int, file: Path) -> None:
    """Send HELLO messages."""
    identity = read_identity(file.read_bytes())
    identity = {"tampered": tampered, "forged": forged}[case](identity)
    handshakes = Handshakes(identity, lambda _: False, lambda: Facts(port), os.urandom)
    sealer = Sealer(Seed(identity.network.otp_seed, identity.network.epoch))
    target = Endpoint(host, port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(REPEAT):
            moment = Now(time.monotonic(), time.time())
            for one in handshakes.initiate(target, moment):
                if isinstance(one, Transmit):
                    for frame in split(one.message, os.urandom):
                        sender.sendto(sealer.seal(frame, time.time()), (host, port))
            time.sleep(PAUSE_SECONDS)
            handshakes.tick(Now(time.monotonic() + 100, time.time()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
