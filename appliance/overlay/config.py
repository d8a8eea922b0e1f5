"""What the overlay is told when it starts; what a network decides stands in its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.overlay.otp import SLOT_SECONDS

# Interfaces by which members may be found: wired and wireless Ethernet, as systemd and the kernel
# name them. Never tunnels, bridges and pairs of containers, whatever is configured besides.
UPLINKS = ("en*", "eth*", "wl*", "ww*", "usb*", "bond*", "team*")
NEVER_UPLINKS = (
    "lo", "skerry*", "wg*", "tun*", "tap*", "veth*", "cni*", "docker*", "br-*", "virbr*",
    "flannel*", "cali*", "cilium*", "kube*", "lxc*", "nerdctl*", "podman*", "tailscale*", "zt*",
)  # fmt: skip
MTU = 1280
# "skerry" marks its own packets, so that rules can lead them around the overlay.
FWMARK = 0x534B


@dataclass(frozen=True, slots=True)
class OverlayConfig:
    """Options of one overlay.

    ``wireguard``: ``kernel``, ``userspace``, or ``auto`` (kernel if it can). ``wireguard_go``: the
    program for userspace; None: looked up on PATH. ``uplinks``: patterns of interface names; if
    given, they also admit what is refused by default. ``slot_seconds`` is for tests.
    """

    interface: str = "skerry0"
    listen_port: int = 51820
    wireguard: str = "auto"
    wireguard_go: Path | None = None
    uplinks: tuple[str, ...] | None = None
    slot_seconds: int = SLOT_SECONDS

    @property
    def probe_port(self) -> int:
        """The UDP port for our datagrams inside the tunnel, on the overlay address only."""
        return self.listen_port + 1
