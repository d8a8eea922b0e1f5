"""Userspace WireGuard (wireguard-go) for hosts whose kernel has none.

The program detaches itself and outlives the supervisor, which finds it again by its UAPI socket
(the cross-platform configuration protocol, wireguard.com/xplatform).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.overlay.endpoint import Endpoint, parse_endpoint
from appliance.overlay.errors import OverlayError
from appliance.overlay.wireguard import Device, PeerState

SOCKETS = Path("/var/run/wireguard")
_TIMEOUT_SECONDS = 5.0
_LONGEST_ANSWER = 64 * 1024 * 1024


@dataclass(slots=True)
class UserspaceWireGuard:
    """The interface of a wireguard-go process."""

    interface: str
    program: Path | None = None
    mode: str = "userspace"

    def ensure(self, device: Device) -> bool:
        """Adopt the running process or start one (see `WireGuard.ensure`)."""
        found = self._answer("get=1\n\n", missing_ok=True)
        if found is None:
            self._start()
        values = dict(read_pairs(found or ""))
        wanted = {
            "private_key": device.private_key.hex(),
            "listen_port": str(device.listen_port),
            "fwmark": str(device.fwmark),
        }
        # Setting the port again would rebind the socket; only what differs is said.
        changes = {name: value for name, value in wanted.items() if values.get(name) != value}
        if changes:
            lines = "".join(f"{name}={value}\n" for name, value in changes.items())
            self._set(lines, f"interface {self.interface}")
        return found is not None

    def set_peer(
        self, key: bytes, endpoint: Endpoint | None, allowed: tuple[str, ...], *, replace: bool
    ) -> None:
        """See `WireGuard.set_peer`."""
        lines = [f"public_key={key.hex()}"]
        if endpoint is not None:
            lines.append(f"endpoint={endpoint}")
        if replace:
            lines.append("replace_allowed_ips=true")
        lines += [f"allowed_ip={one}" for one in allowed]
        self._set("\n".join(lines) + "\n", "a peer")

    def remove_peer(self, key: bytes) -> None:
        """See `WireGuard.remove_peer`."""
        self._set(f"public_key={key.hex()}\nremove=true\n", "a peer")

    def peers(self) -> Mapping[bytes, PeerState]:
        """See `WireGuard.peers`."""
        return read_peers(self._answer("get=1\n\n") or "")

    def close(self) -> None:
        """Nothing is held between calls."""

    def _set(self, lines: str, what: str) -> None:
        answer = dict(read_pairs(self._answer(f"set=1\n{lines}\n") or ""))
        number = int(answer.get("errno", "0"))
        if number:
            raise OverlayError(
                f"wireguard-go refused to set {what}: {os.strerror(abs(number))}",
                hint="is the UDP port in use? `ss -ulpn` names who has it",
            )

    def _answer(self, request: str, *, missing_ok: bool = False) -> str | None:
        path = SOCKETS / f"{self.interface}.sock"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
                channel.settimeout(_TIMEOUT_SECONDS)
                channel.connect(str(path))
                channel.sendall(request.encode())
                received = bytearray()
                while not received.endswith(b"\n\n"):
                    data = channel.recv(65536)
                    if not data or len(received) > _LONGEST_ANSWER:
                        break
                    received += data
                return received.decode("ascii", "replace")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if missing_ok:
                return None
            raise OverlayError(
                f"wireguard-go of {self.interface} is gone ({path}: {error.strerror})",
                hint="it is started again when the supervisor restarts",
            ) from error
        except OSError as error:
            raise OverlayError(
                f"wireguard-go of {self.interface} does not answer at {path}: {error}",
                hint="end that process; the supervisor starts it again",
            ) from error

    def _start(self) -> None:
        program = self.program or _on_path()
        # Without -f it opens the interface, leaves a child behind and returns.
        try:
            done = subprocess.run(
                [str(program), self.interface],
                env={"PATH": os.environ.get("PATH", "")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_TIMEOUT_SECONDS * 4,
                start_new_session=True,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OverlayError(f"{program} could not be run: {error}") from error
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise OverlayError(
                f"wireguard-go could not make {self.interface}: {said[-1]}",
                hint="it needs CAP_NET_ADMIN and /dev/net/tun",
            )


def _on_path() -> Path:
    found = shutil.which("wireguard-go")
    if found is None:
        raise OverlayError(
            "this kernel has no WireGuard, and there is no wireguard-go",
            hint="install wireguard-go, or name it with --wireguard-go",
        )
    return Path(found)


def read_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Iterate over the ``key=value`` lines of an answer."""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            yield key, value


def read_peers(text: str) -> dict[bytes, PeerState]:
    """Return the peers in the answer to ``get=1``; lines that make no sense are passed over."""
    peers: dict[bytes, dict[str, str]] = {}
    allowed: dict[bytes, set[str]] = {}
    key = b""
    for name, value in read_pairs(text):
        if name == "public_key":
            try:
                key = bytes.fromhex(value)
            except ValueError:
                key = b""
            if key:
                peers[key], allowed[key] = {}, set()
        elif key and name == "allowed_ip":
            allowed[key].add(value)
        elif key:
            peers[key][name] = value
    return {key: _state(values, allowed[key]) for key, values in peers.items()}


def _state(values: Mapping[str, str], allowed: set[str]) -> PeerState:
    seconds = _number(values.get("last_handshake_time_sec"))
    nanoseconds = _number(values.get("last_handshake_time_nsec"))
    endpoint = values.get("endpoint")
    return PeerState(
        endpoint=parse_endpoint(endpoint) if endpoint else None,
        handshake=seconds + nanoseconds / 1e9 if seconds else None,
        received=_number(values.get("rx_bytes")),
        sent=_number(values.get("tx_bytes")),
        allowed=frozenset(allowed),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
