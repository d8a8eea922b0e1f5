"""Options of an engine, ours or k3s, by what they do: a server that has all of them otherwise.

`test_engine.py` has the rest, and docs/engine.md a list of which test shows which option.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from image import engine, workloads
from image.board import Architecture
from image.golang import Program, build
from tests.contract.engine_world import Machine, World, wait_until
from tests.contract.test_engine import _ARCHITECTURE, OFFICIAL, SECRET, ours

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and containers need root"),
    # The engine may have to be compiled first.
    pytest.mark.timeout(1800),
]
_DATA, _KUBECONFIG = "/data/elsewhere", "/data/shared/admin.yaml"
# The key that the controller manager reads before all else, from a pipe: it starts when we write.
_LATER = "/data/shared/service.key"
CSI_STAND_IN = Program("engine", "./cmd/csi-stand-in", "csi-stand-in")
_CONFIG = f"""
token-file: /data/shared/token
data-dir: {_DATA}
cluster-init: true
container-runtime-endpoint: unix:///run/elsewhere.sock
cluster-cidr: 10.77.0.0/16
service-cidr: 10.78.0.0/16
cluster-dns: 10.78.0.99
cluster-domain: cluster.example
flannel-backend: none
write-kubeconfig: {_KUBECONFIG}
write-kubeconfig-mode: "0640"
tls-san: [api.example, 192.0.2.7]
node-taint: ["test.skerry/kind=odd:NoSchedule"]
kubelet-arg: [max-pods=17, "cgroup-root=/@GROUP@"]
kube-proxy-arg: [conntrack-tcp-timeout-established=1h17m]
kube-apiserver-arg: [service-node-port-range=31000-31002]
kube-controller-manager-arg:
  - leader-elect=true
  - leader-elect-resource-name=test-controllers
  - service-account-private-key-file=@LATER@
kube-scheduler-arg: [leader-elect=true, leader-elect-resource-name=test-scheduler]
"""
_POD = """
apiVersion: v1
kind: Pod
metadata: {name: resolves, namespace: default}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers: [{name: pause, image: "skerry.local/pause:1", imagePullPolicy: Never}]
"""
# Arguments: ADDRESS NAME CA. Ends with 0 if the certificate is signed by CA and for NAME.
_HANDSHAKE = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[3])
context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
with socket.create_connection((sys.argv[1], 6443), 20) as plain:
    context.wrap_socket(plain, server_hostname=sys.argv[2]).close()
"""


@pytest.fixture(scope="module")
def program() -> Path:
    return engine.ensure(_ARCHITECTURE)


@pytest.fixture(scope="module")
def server(program: Path) -> Iterator[Machine]:
    sources = workloads.Sources(Architecture(_ARCHITECTURE), Path("/nowhere"), "")
    with World(program, workloads.archive("pause", sources)) as world:
        machine = world.machine("odd")
        machine.containerd()
        # Where the engine looks unless told otherwise there is none any more.
        machine.run("mv", "/run/containerd/containerd.sock", "/run/elsewhere.sock")
        (machine.shared / "token").write_text(f"{SECRET}\n")
        own_key = f"{_DATA}/server/tls/service.key"
        text = _CONFIG.replace("@GROUP@", machine.namespace)
        text = text.replace("@LATER@", own_key if OFFICIAL else _LATER)
        machine.run("mkfifo", _LATER)
        (machine.shared / "config.yaml").write_text(text)
        words = ["/engine", "server", "--config", "/data/shared/config.yaml"]
        machine.spawn([*words, "--node-name", "odd", "--node-ip", machine.address], machine.log)
        try:
            wait_until(lambda: _ready(machine), 120, "the node is ready")
            if not OFFICIAL:
                machine.run("sh", "-c", f"cat {own_key} >{_LATER}")
        except BaseException:
            print(machine.tail())
            raise
        yield machine


def _get(machine: Machine, *words: str) -> str:
    return machine.kubectl("--kubeconfig", _KUBECONFIG, "get", *words, check=False)


def _ready(machine: Machine) -> bool:
    states = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    return _get(machine, "node", "odd", "-o", states) == "True"


@ours
def test_any_other_flannel_backend_is_refused_and_says_why(program: Path) -> None:
    words = [str(program), "server", "--flannel-backend=vxlan", "--data-dir=/nowhere"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert '"flannel-backend" can only be "none" here, not "vxlan"' in done.stderr


def test_token_file_data_dir_cluster_init_and_kubeconfig(server: Machine) -> None:
    token = server.run("cat", f"{_DATA}/server/token").strip()
    assert re.fullmatch(rf"K10[0-9a-f]{{64}}::server:{SECRET}", token)
    assert server.run("ls", f"{_DATA}/server/db/etcd/member").split() == ["snap", "wal"]
    assert "No such file" in server.run("ls", f"{_DATA}/server/db/state.db", check=False)
    assert server.run("stat", "-c", "%a", _KUBECONFIG).strip() == "640"
    assert "No such file" in server.run("ls", "/etc/rancher/k3s/k3s.yaml", check=False)


def test_addresses_of_pods_and_services(server: Machine) -> None:
    assert _get(server, "svc", "kubernetes", "-o", "jsonpath={.spec.clusterIP}") == "10.78.0.1"
    if OFFICIAL:
        return  # Its kube-proxy may have another mode.

    def rules() -> str:
        return server.run("nft", "list", "table", "ip", "kube-proxy", check=False)

    # What does not come from a pod is masqueraded on its way to a Service.
    wait_until(lambda: "ip saddr != 10.77.0.0/16" in rules(), 30, "kube-proxy knows the pods")


def test_pods_resolve_by_the_address_and_the_domain(server: Machine) -> None:
    (server.shared / "pod.yaml").write_text(_POD)
    apply = ("--kubeconfig", _KUBECONFIG, "apply", "-f", "/data/shared/pod.yaml")
    # Not before the controllers have made the namespace's service account.
    wait_until(lambda: "pod/resolves" in server.kubectl(*apply, check=False), 60, "it is taken")
    phase = ("pod", "resolves", "-o", "jsonpath={.status.phase}")
    wait_until(lambda: _get(server, *phase) == "Running", 60, "the pod runs")
    place = "cat /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/*/resolv.conf"
    lines = server.run("sh", "-c", place).splitlines()
    assert "nameserver 10.78.0.99" in lines
    (search,) = (line for line in lines if line.startswith("search "))
    assert search.split()[1:4] == [
        "default.svc.cluster.example",
        "svc.cluster.example",
        "cluster.example",
    ]


@pytest.mark.parametrize("name", ["api.example", "192.0.2.7"])
def test_the_certificate_is_for_the_further_names(server: Machine, name: str) -> None:
    ca = server.shared / "ca.crt"
    ca.write_text(server.run("cat", f"{_DATA}/server/tls/server-ca.crt"))

    def shakes(other: str) -> bool:
        words = ["nsenter", f"--net=/run/netns/{server.namespace}", sys.executable]
        words += ["-c", _HANDSHAKE, server.address, other, str(ca)]
        return subprocess.run(words, capture_output=True, check=False, timeout=30).returncode == 0

    assert shakes(name)
    assert not shakes(f"{name}.not" if name[0] == "a" else "192.0.2.8")


def test_node_taint_and_kubelet_arg(server: Machine) -> None:
    taints = 'jsonpath={range .spec.taints[?(@.key=="test.skerry/kind")]}{.value} {.effect}{end}'
    assert _get(server, "node", "odd", "-o", taints) == "odd NoSchedule"
    assert _get(server, "node", "odd", "-o", "jsonpath={.status.capacity.pods}") == "17"


def test_kube_proxy_arg(server: Machine) -> None:
    place = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
    wait_until(lambda: server.run("cat", place).strip() == "4620", 30, "1 h 17 min")


def test_kube_apiserver_arg(server: Machine) -> None:
    create = ("create", "service", "nodeport", "ports", "--tcp=80")
    server.kubectl("--kubeconfig", _KUBECONFIG, *create)
    port = _get(server, "svc", "ports", "-o", "jsonpath={.spec.ports[0].nodePort}")
    assert port in {"31000", "31001", "31002"}


@pytest.mark.parametrize("name", ["test-controllers", "test-scheduler"])
def test_kube_controller_manager_arg_and_kube_scheduler_arg(server: Machine, name: str) -> None:
    holder = ("-n", "kube-system", "lease", name, "-o", "jsonpath={.spec.holderIdentity}")
    # Whoever holds it calls itself by the host name and a random number.
    wait_until(lambda: "_" in _get(server, *holder), 30, f"there is a leader by the lease {name}")


@ours
def test_network_policies_are_enforced_unless_disabled(server: Machine) -> None:
    """`test_engine.py` disables it and finds no such table."""
    wait_until(partial(has_policies, server), 30, "the table of policies")


def has_policies(machine: Machine) -> bool:
    """Tell whether a machine has the table of policies."""
    return "skerry-policy" in machine.run("nft", "list", "tables")


@ours
def test_a_csi_driver_registers_though_the_controller_manager_came_last(server: Machine) -> None:
    """In one process they share upstream's variable through which the kubelet announces it."""
    made = ("configmap", "kube-root-ca.crt", "-o", "name")
    wait_until(lambda: "kube-root" in _get(server, *made), 60, "all controllers have started")
    shutil.copyfile(build(CSI_STAND_IN, _ARCHITECTURE), server.shared / "csi")
    (server.shared / "csi").chmod(0o755)
    log = server.scratch / "csi.log"
    words = ["/data/shared/csi", "test.csi.example", "this-node"]
    process = server.spawn([*words, "/var/lib/kubelet/plugins_registry/test.sock"], log)
    wait_until(lambda: "registered: " in log.read_text(), 30, "the kubelet finds the driver")
    assert "registered: true" in log.read_text()

    def drivers() -> str:
        shown = "jsonpath={range .spec.drivers[*]}{.name} as {.nodeID}{end}"
        return _get(server, "csinode", "odd", "-o", shown)

    wait_until(lambda: drivers() == "test.csi.example as this-node", 30, "the node has it")
    server.stop(process)
    wait_until(lambda: drivers() == "", 30, "the node has it no more")
