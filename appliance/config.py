"""What a supervisor is told when it starts; the defaults are the node's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATE_DIR = Path("/data/skerry")
RUN_DIR = Path("/run/skerry")
# Not 53, which takes a privilege; with its address in appliance/names/server.py.
RESOLVER_PORT = 5335
WIREGUARD_MODES = ("auto", "kernel", "userspace")


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """Paths and options of one supervisor."""

    state_dir: Path = STATE_DIR
    run_dir: Path = RUN_DIR
    interface: str = "skerry0"
    wireguard: str = "auto"
    wireguard_go: Path | None = None
    listen_port: int = 51820
    token_file: Path | None = None
    name: str | None = None
    credentials: Path | None = None
    names_port: int | None = None
    debug: bool = False

    @property
    def database(self) -> Path:
        """The state database."""
        return self.state_dir / "state.db"

    @property
    def ledger(self) -> Path:
        """This node's copy of the ledger."""
        return self.state_dir / "ledger.db"

    @property
    def time_request(self) -> Path | None:
        """Where to ask for the machine's clock to be set; only on a node somebody looks there."""
        return self.run_dir / "time" if self.run_dir == RUN_DIR else None

    @property
    def identity_dir(self) -> Path:
        """Keys and certificate."""
        return self.state_dir / "identity"

    @property
    def socket(self) -> Path:
        """The local API."""
        return self.run_dir / "api.sock"

    @property
    def inbox(self) -> Path:
        """Where tokens are handed over."""
        return self.run_dir / "inbox"

    @property
    def cluster_status(self) -> Path:
        """What the cluster agent reports (docs/kubernetes.md); it is another process."""
        name = "skerry-cluster" if self.run_dir == RUN_DIR else f"{self.run_dir.name}-cluster"
        return self.run_dir.with_name(name) / "status.json"

    @property
    def resolver_port(self) -> int | None:
        """Where members' names are answered; beside a node's supervisor only if it was said."""
        if self.names_port is None and self.run_dir == RUN_DIR:
            return RESOLVER_PORT
        return self.names_port

    @property
    def issue(self) -> Path:
        """What the login prompts of all consoles show (agetty(8) reads it)."""
        if self.run_dir == RUN_DIR:
            return Path("/run/issue.d/50-skerry.issue")
        return self.run_dir / "issue"
