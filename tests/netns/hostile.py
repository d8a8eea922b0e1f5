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
from appliance.overlay.events import Send
from appliance.overlay.handshake import Handshakes
from appliance.overlay.otp import Seed
from appliance.overlay.outcomes import Facts, Outcome, Transmit
from appliance.overlay.post import Post
from appliance.overlay.seal import Sealer
from appliance.overlay.wire import Body, Kind, Signed
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


def hellos(identity: Identity, target: Endpoint, count: int) -> list[bytes]:
    """Return datagrams with so many different beginnings of good handshakes."""
    handshakes = Handshakes(identity, lambda *_: None, lambda _: Facts(target.port), os.urandom)
    post, found = post_of(identity), []
    for _ in range(count):
        found += datagrams(post, handshakes.initiate(target, moment(), identity.network.epoch))
        handshakes._outgoing.clear()
    return found


def post_of(identity: Identity) -> Post:
    return Post(Sealer(Seed(identity.network.otp_seed, identity.network.epoch)), os.urandom)


def datagrams(post: Post, outcomes: tuple[Outcome, ...]) -> list[bytes]:
    return [
        action.data
        for one in outcomes
        if isinstance(one, Transmit)
        for action in post.outside(one.message, one.destination, one.epoch, moment())
        if isinstance(action, Send)
    ]


def main(case: str, host: str, port: int, file: Path) -> None:
    """Begin handshakes, and answer what comes back."""
    identity = read_identity(file.read_bytes())
    spoil = {"tampered": tampered, "forged": forged, "stolen-key": stolen_key}[case]
    handshakes = CarelessHandshakes(
        spoil(identity), lambda *_: None, lambda _: Facts(port), os.urandom
    )
    target, post = Endpoint(host, port), post_of(identity)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(PAUSE_SECONDS)

        def transmit(outcomes: tuple[Outcome, ...]) -> None:
            for one in datagrams(post, outcomes):
                connection.sendto(one, (host, port))

        for _ in range(REPEAT):
            transmit(handshakes.initiate(target, moment(), identity.network.epoch))
            with contextlib.suppress(TimeoutError):
                while True:
                    letter = post.read(connection.recv(2048), target, moment())
                    if letter is None or not isinstance(letter.payload, Signed):
                        continue
                    transmit(
                        handshakes.receive(
                            letter.kind, letter.payload, target, moment(), letter.epoch
                        )
                    )
            handshakes.tick(Now(time.monotonic() + 100, time.time()))


def moment() -> Now:
    return Now(time.monotonic(), time.time())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
