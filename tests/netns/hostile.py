"""A node that means no good: shakes hands with a member as its case says.

``python -m tests.netns.hostile CASE HOST PORT FILE``: FILE is an identity of the member's network,
its certificate is spoilt as the case says. Tried until the process is ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import time
from pathlib import Path

from appliance.overlay.clock import Now
from appliance.overlay.endpoint import Endpoint
from appliance.overlay.frames import Reassembler, split
from appliance.overlay.handshake import Facts, Handshakes, Outcome, Transmit
from appliance.overlay.otp import Seed
from appliance.overlay.seal import Sealer
from appliance.overlay.wire import Body, Kind, Signed, decode_message
from provisioning.grant import issue
from provisioning.identity import Identity, read_identity
from provisioning.keys import public_key
from provisioning.membership import Member, make_certificate

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


def stolen_key(identity: Identity) -> Identity:
    """Return an identity with the certificate in the file: good, but its tunnel key is another's.

    Who has a token can make such a certificate for itself.
    """
    return dataclasses.replace(identity, certificate=Path(sys.argv[5]).read_bytes())


class CarelessHandshakes(Handshakes):
    """Goes through with a handshake, whatever the other one says."""

    def _check_tunnel_key(self, kind: Kind, body: Body, member: Member) -> None:
        pass


def main(case: str, host: str, port: int, file: Path) -> None:
    """Begin handshakes, and answer what comes back."""
    identity = read_identity(file.read_bytes())
    spoil = {"tampered": tampered, "forged": forged, "stolen-key": stolen_key}[case]
    handshakes = CarelessHandshakes(
        spoil(identity), lambda _, __: None, lambda _: Facts(port), os.urandom
    )
    sealer = Sealer(Seed(identity.network.otp_seed, identity.network.epoch))
    target = Endpoint(host, port)
    parts = Reassembler()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(PAUSE_SECONDS)

        def transmit(outcomes: tuple[Outcome, ...]) -> None:
            for one in outcomes:
                if isinstance(one, Transmit):
                    for frame in split(one.message, os.urandom):
                        connection.sendto(sealer.seal(frame, time.time()), (host, port))

        for _ in range(REPEAT):
            transmit(handshakes.initiate(target, moment(), identity.network.epoch))
            with contextlib.suppress(TimeoutError):
                while True:
                    opened = sealer.unseal(connection.recv(2048), time.time())
                    if opened is None:
                        continue
                    message = parts.add(target, opened.plaintext, time.monotonic())
                    if message is None:
                        continue
                    kind, signed = decode_message(message)
                    if isinstance(signed, Signed):
                        transmit(handshakes.receive(kind, signed, target, moment(), opened.epoch))
            handshakes.tick(Now(time.monotonic() + 100, time.time()))


def moment() -> Now:
    return Now(time.monotonic(), time.time())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
