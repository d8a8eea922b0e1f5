"""Where the cluster agent finds and puts things on a node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.cluster import conflist

SERVER_UNIT = "skerry-engine-server.service"
AGENT_UNIT = "skerry-engine-agent.service"
# Brings the container images in, and the runtime up: takes its time.
IMAGES_UNIT = "skerry-container-images.service"
# All pods, with the systemd cgroup driver: stopping it ends them.
PODS_SLICE = "kubepods.slice"
API_PORT = 6443


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Every path that is used; tests give others."""

    socket: Path = Path("/run/skerry/api.sock")
    run_dir: Path = Path("/run/skerry-cluster")
    data_dir: Path = Path("/data/kubernetes")
    manifests: Path = Path("/usr/share/skerry/manifests")
    conflist: Path = Path(conflist.PATH)
    kubeconfig: Path = Path("/etc/rancher/k3s/k3s.yaml")
    containerd: str = "unix:///run/containerd/containerd.sock"
    cni_dir: Path = Path("/run/skerry-cni")
    # What a person wants of services (`appliance.services`).
    services_dir: Path = Path("/data/services")
    # A link that is there if the engine is not ours but the official k3s.
    foreign_engine: Path = Path("/usr/share/skerry/engine-is-k3s")
    # Kubernetes itself is somebody else's.
    pods_only: bool = False

    @property
    def gate(self) -> bool:
        """Whether new pods wait for policies to be enforced: only our engine opens the gate."""
        return not self.pods_only and not self.foreign_engine.is_symlink()

    @property
    def config(self) -> Path:
        """The engine's configuration, mode 0600: it holds the token."""
        return self.run_dir / "config.yaml"

    @property
    def flannel_dir(self) -> Path:
        """What Flannel's daemon is told; readable by all, without secrets."""
        return self.run_dir / "flannel"

    @property
    def applied(self) -> Path:
        """The digest of the configuration that the engine was last started for."""
        return self.run_dir / "applied"

    @property
    def status(self) -> Path:
        """What the agent reports; readable by all, without secrets."""
        return self.run_dir / "status.json"

    @property
    def engine_manifests(self) -> Path:
        """What the engine applies."""
        return self.data_dir / "server/manifests"

    @property
    def state(self) -> Path:
        """What a server has of the cluster: keys and datastore."""
        return self.data_dir / "server"

    @property
    def server_kubeconfig(self) -> Path:
        """As whom the cluster agent asks on a server: as the engine itself.

        Its rights last when the administrators are others. The official engine has the
        administrator's only.
        """
        own = self.data_dir / "server/tls/engine.kubeconfig"
        return own if own.exists() else self.kubeconfig

    @property
    def server_token(self) -> Path:
        """The engine's own token file: ``K10HASH::server:SECRET``."""
        return self.data_dir / "server/node-token"

    @property
    def agent_secret(self) -> Path:
        """The secret that agents join by, kept by the node that founded the cluster."""
        return self.data_dir / "skerry/agent-secret"

    @property
    def kept(self) -> Path:
        """What this node promised and became (`cluster_entries.Promises`): outlives the ledger."""
        return self.data_dir / "skerry/roles"

    @property
    def sealed(self) -> Path:
        """By which the agent knows again what it sealed for the operator."""
        return self.run_dir / "sealed"

    @property
    def kubelet_kubeconfig(self) -> Path:
        """The kubelet's own credentials."""
        return self.data_dir / "agent/kubelet.kubeconfig"
