"""What is promised of an engine, ours or k3s: options, one cluster of three machines, its safety.

`ENGINE=k3s` with `K3S_BIN` or `K3S_VERSION` runs the same on an official release (not done here:
none can be had). What only ours promises says so.
"""

from __future__ import annotations

import base64
import os
import platform
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from image import engine, workloads
from image.board import Architecture
from tests.contract.engine_world import DATA, Machine, World, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and containers need root"),
    # The engine may have to be compiled first.
    pytest.mark.timeout(1800),
]
SECRET = "0123456789abcdef0123456789abcdef"
SERVER = "https://10.99.0.1:6443"
OFFICIAL = os.environ.get("ENGINE") == "k3s" or "K3S_BIN" in os.environ
ours = pytest.mark.skipif(OFFICIAL, reason="only our engine promises this")
ROOT = Path(__file__).parents[2]
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
_CONFIG = """
token: {secret}
node-label: [test.skerry/place=shelf]
tls-san: [cluster.test]
write-kubeconfig-mode: "0600"
disable: [unwanted]
disable-network-policy: true
secrets-encryption: true
"""
_EVERYWHERE = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere, namespace: default}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers: [{name: pause, image: "skerry.local/pause:1", imagePullPolicy: Never}]
"""
_WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 0
      containers: [{name: pause, image: "skerry.local/pause:1", imagePullPolicy: Never}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: default}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
"""
# Arguments: KUBECONFIG NODE. What the cluster agent of the leading server does, once.
_DRAIN = """
import sys
from pathlib import Path
from appliance.kubernetes.draining import Cordon, empty
from appliance.kubernetes.kubeapi import KubeApi
from appliance.kubernetes.kubeconfig import read_kubeconfig
path = Path(sys.argv[1])
api = KubeApi(read_kubeconfig(path.read_text(), "it"), path.parent)
node = f"/api/v1/nodes/{sys.argv[2]}"
api.ask("PATCH", node, Cordon("", on=True).patch, "application/merge-patch+json")
print(empty(api, sys.argv[2], False))
"""
_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\n"


@pytest.fixture(scope="module")
def program() -> Path:
    return engine.ensure(_ARCHITECTURE)


@dataclass
class Cluster:
    """A server `one`, an agent `two` that joined by the server's own token file."""

    world: World
    one: Machine
    two: Machine
    server: subprocess.Popen[bytes]

    def start_server(self) -> None:
        """Start the server and wait for its word to the service manager."""
        place = self.one.shared / "notify"
        place.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(place))
            manager.settimeout(300)
            self.server = self.one.engine(
                "server",
                "--config",
                "/data/shared/config.yaml",
                NOTIFY_SOCKET="/data/shared/notify",
            )
            assert "READY=1" in manager.recv(4096).decode()

    def ready(self, *names: str) -> bool:
        """Tell whether exactly these Nodes are there and ready."""
        found = {}
        for node in self.one.get("nodes").get("items", ()):
            states = {one["type"]: one["status"] for one in node["status"].get("conditions", ())}
            found[node["metadata"]["name"]] = states.get("Ready") == "True"
        return found == dict.fromkeys(names, True)

    def pods(self) -> dict[str, tuple[str, str, int]]:
        """Return node -> name, phase and restarts of the DaemonSet's pods."""
        found = {}
        for pod in self.one.get("pods", "-l", "app=everywhere").get("items", ()):
            states = pod["status"].get("containerStatuses", ())
            restarts = sum(one["restartCount"] for one in states)
            what = (pod["metadata"]["name"], pod["status"]["phase"], restarts)
            found[pod["spec"].get("nodeName", "")] = what
        return found

    def manifest(self, name: str, text: str) -> None:
        """Put a manifest into the server's folder."""
        (self.one.shared / name).write_text(text)
        self.one.run("cp", f"/data/shared/{name}", f"{DATA}/server/manifests/{name}")


@pytest.fixture(scope="module")
def cluster(program: Path) -> Iterator[Cluster]:
    sources = workloads.Sources(Architecture(_ARCHITECTURE), Path("/nowhere"), "")
    with World(program, workloads.archive("pause", sources)) as world:
        one, two = world.machine("one"), world.machine("two")
        one.containerd()
        two.containerd()
        (one.shared / "config.yaml").write_text(_CONFIG.format(secret=SECRET))
        made = Cluster(world, one, two, one.holder)
        try:
            made.start_server()
            token = one.run("cat", f"{DATA}/server/node-token").strip()
            two.engine("agent", "--server", SERVER, "--token", token)
            wait_until(lambda: made.ready("one", "two"), 120, "both nodes ready")
        except BaseException:
            print(one.tail(), two.tail(), sep="\n----\n")
            raise
        yield made


def test_an_unknown_option_is_refused_by_its_name(program: Path) -> None:
    done = subprocess.run(
        [program, "server", "--nonsense=1"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "nonsense" in done.stderr + done.stdout


@ours
def test_an_unknown_argument_of_a_component_is_refused_with_status_2(cluster: Cluster) -> None:
    three = ("server", "--data-dir", "/tmp/other", "--kube-scheduler-arg", "nonsense=1")
    said = cluster.two.run("/engine", *three, check=False)
    assert '"kube-scheduler-arg": unknown flag: --nonsense' in said


def test_nodes_are_as_the_options_say(cluster: Cluster) -> None:
    role = "node-role.kubernetes.io/control-plane"
    wait_until(lambda: role in cluster.one.kubectl("get", "node", "one", "-o", "yaml"), 30, role)
    one, two = (cluster.one.get("node", name) for name in ("one", "two"))
    assert one["metadata"]["labels"]["test.skerry/place"] == "shelf"
    assert role not in two["metadata"]["labels"]
    for node, machine in ((one, cluster.one), (two, cluster.two)):
        addresses = {each["type"]: each["address"] for each in node["status"]["addresses"]}
        assert addresses["InternalIP"] == machine.address
        # Pod ranges come from the overlay, not from the engine.
        assert OFFICIAL or "podCIDR" not in node["spec"]


@ours
def test_no_policies_are_enforced_where_that_is_disabled(cluster: Cluster) -> None:
    """`test_engine_options.py` has a server that enforces them."""
    assert "skerry-policy" not in cluster.one.run("nft", "list", "tables")


def test_manifests_are_applied_changed_and_removed(cluster: Cluster) -> None:
    cluster.manifest("everywhere.yaml", _EVERYWHERE)
    cluster.manifest("unwanted.yaml", _MAP.format(name="unwanted"))
    cluster.manifest("maps.yaml", _MAP.format(name="a") + "---\n" + _MAP.format(name="b"))
    wait_until(
        lambda: (
            {node: pod[1] for node, pod in cluster.pods().items()}
            == {"one": "Running", "two": "Running"}
        ),
        90,
        "a pod on each node",
    )

    def names() -> set[str]:
        return {each["metadata"]["name"] for each in cluster.one.get("cm").get("items", ())}

    wait_until(lambda: {"a", "b"} <= names(), 60, "both maps")
    cluster.manifest("maps.yaml", _MAP.format(name="a"))
    wait_until(lambda: names() & {"a", "b"} == {"a"}, 60, "what the manifest no longer has is gone")
    assert "unwanted" not in names()
    if not OFFICIAL:
        cluster.one.run("rm", f"{DATA}/server/manifests/maps.yaml")
        # What every namespace has: the list is one, and not the failure to get it.
        gone = {"a", "kube-root-ca.crt"}
        wait_until(
            lambda: names() & gone == {"kube-root-ca.crt"}, 60, "what the removed manifest had"
        )


def test_the_api_server_reaches_the_kubelets_of_both_nodes(cluster: Cluster) -> None:
    wait_until(lambda: len(cluster.pods()) == 2, 90, "pods")
    for name, _phase, _restarts in cluster.pods().values():
        # Fails unless the kubelet's certificate is signed by the cluster.
        wait_until(partial(_says_nothing, cluster.one, name), 60, f"the logs of {name}")


def _says_nothing(server: Machine, pod: str) -> bool:
    return server.kubectl("logs", pod, check=False) == ""


def test_a_secret_is_not_to_be_read_in_the_datastore(cluster: Cluster) -> None:
    """Neither in the database nor in its log; the search finds what is no Secret."""
    plain, hidden = (secrets.token_hex(16) for _ in range(2))
    cluster.one.kubectl("create", "configmap", "open", f"--from-literal=a={plain}")
    cluster.one.kubectl("create", "secret", "generic", "hidden", f"--from-literal=a={hidden}")
    encoded = base64.b64encode(hidden.encode()).decode()
    assert cluster.one.get("secret", "hidden")["data"] == {"a": encoded}
    search = f"cat {DATA}/server/db/state.db* | grep -a -c -F"
    assert int(cluster.one.run("sh", "-c", f"{search} {plain}")) > 0
    for form in (hidden, encoded):
        assert cluster.one.run("sh", "-c", f"{search} {form} || true").strip() == "0"


def test_a_node_is_drained_as_its_budgets_allow(cluster: Cluster) -> None:
    """By the cluster agent's own code; what belongs to the node stays."""
    cluster.manifest("web.yaml", _WEB)

    def web() -> tuple[str, str]:
        found = cluster.one.get("pods", "-l", "app=web").get("items", ())
        running = [one for one in found if one["status"]["phase"] == "Running"]
        names = [(one["spec"]["nodeName"], one["metadata"]["name"]) for one in running]
        return names[0] if len(found) == len(names) == 1 else ("", "")

    wait_until(lambda: web()[0], 60, "the pod runs")
    healthy = ("pdb", "web", "-o", "jsonpath={.status.currentHealthy}")
    wait_until(lambda: cluster.one.kubectl("get", *healthy, check=False) == "1", 60, "budget")
    before, there = web(), cluster.pods()
    kubeconfig = cluster.one.shared / "for-draining"
    kubeconfig.write_text(cluster.one.run("cat", "/etc/rancher/k3s/k3s.yaml"))

    def drained() -> bool:
        words = ["nsenter", f"--net=/run/netns/{cluster.one.namespace}", sys.executable, "-c"]
        argv = [*words, _DRAIN, str(kubeconfig), before[0]]
        return subprocess.run(argv, check=True, capture_output=True, cwd=ROOT).stdout == b"0\n"

    assert not drained()
    assert web() == before
    cluster.one.kubectl("delete", "pdb", "web")
    wait_until(drained, 30, "it is drained")
    wait_until(lambda: web()[0] not in {"", before[0]}, 60, "the pod runs elsewhere")
    assert cluster.pods() == there
    cluster.one.kubectl("uncordon", before[0])
    cluster.one.run("rm", f"{DATA}/server/manifests/web.yaml")


def test_a_restarted_server_has_what_it_had_and_its_pods_went_on(cluster: Cluster) -> None:
    wait_until(lambda: len(cluster.pods()) == 2, 90, "pods")
    before = cluster.pods()
    cluster.one.kubectl("create", "configmap", "kept", "--from-literal=a=1")
    cluster.one.kubectl("create", "secret", "generic", "kept", "--from-literal=a=1")
    assert cluster.one.stop(cluster.server) == 0
    cluster.start_server()
    wait_until(lambda: cluster.ready("one", "two"), 90, "both nodes ready again")
    assert cluster.one.get("cm", "kept")["data"] == {"a": "1"}
    assert cluster.one.get("secret", "kept")["data"] == {"a": base64.b64encode(b"1").decode()}
    wait_until(lambda: cluster.pods() == before, 30, f"the pods are as they were: {before}")


def test_a_server_that_was_killed_starts_again(cluster: Cluster) -> None:
    cluster.one.kubectl("create", "configmap", "written-last")
    cluster.one.stop(cluster.server, hard=True)
    cluster.start_server()
    wait_until(lambda: cluster.one.get("cm", "written-last"), 30, "what was written last is there")


def test_a_plain_secret_joins_too(cluster: Cluster) -> None:
    """Also if the node asks for its certificate more than once.

    At first it has no room to keep one, then it is killed as soon as it has a key to ask with.
    """
    three = cluster.world.machine("three")
    three.containerd()
    folder, words = f"{DATA}/agent/pki", ("agent", "--server", SERVER, "--token", SECRET)
    three.run("mkdir", "-p", folder)
    three.run("mount", "-t", "tmpfs", "-o", "nr_inodes=1", "tmpfs", folder)
    process = three.engine(*words)
    wait_until(lambda: "no space left" in three.log.read_text(), 60, "it has no room")
    three.stop(process, hard=True)
    three.run("umount", folder)
    process = three.engine(*words)
    look = f"until ls {folder}/kubelet-client* 2>/dev/null; do sleep 0.01; done"
    three.run("sh", "-c", look)
    three.stop(process, hard=True)
    three.engine(*words)
    try:
        wait_until(lambda: cluster.ready("one", "two", "three"), 150, "three joins")
    finally:
        # Shown if it did not.
        print(three.tail(), cluster.one.kubectl("get", "nodes,csr", check=False), sep="\n----\n")


REFUSALS = {
    "wrong secret": (
        "K10{ca}::server:" + "f" * 32,
        r"refuses the token|[Uu]nauthorized|not authoriz",
    ),
    "wrong plain secret": (
        "f" * 32,
        r"does not know the token's secret|[Uu]nauthorized|not authoriz",
    ),
    "wrong CA": (
        "K10" + "0" * 64 + f"::server:{SECRET}",
        r"not of the token's cluster|hash does not match",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_node_that_may_not_join_is_told_why(cluster: Cluster, what: str) -> None:
    token, pattern = REFUSALS[what]
    ca = cluster.one.run("cat", f"{DATA}/server/node-token")[3:67]
    stranger = cluster.two.shared.parent / f"{what.replace(' ', '-')}.log"
    words = ["/engine", "agent", "--server", SERVER, "--data-dir", "/tmp/stranger"]
    process = cluster.two.spawn(
        [*words, "--node-name", "stranger", "--token", token.format(ca=ca)], stranger
    )
    wait_until(lambda: re.search(pattern, stranger.read_text()), 90, what)
    if OFFICIAL:
        cluster.two.stop(process)
    else:
        assert process.wait(60) == 1
    assert "not found" in cluster.one.kubectl("get", "node", "stranger", check=False)
    secret = token.rpartition(":")[2]
    assert secret not in stranger.read_text()


@ours
def test_a_token_does_not_take_over_a_node_that_is_there(cluster: Cluster) -> None:
    """Whoever has the agents' token gets no certificate in the name of the server's node."""
    thief = cluster.world.machine("thief")
    thief.containerd()
    thief.engine("agent", "--server", SERVER, "--token", SECRET, "--node-name", "one")
    said = "denied: a Node called one is there"
    wait_until(lambda: said in cluster.one.log.read_text(), 90, f"it is denied: {thief.tail()}")


@ours
def test_without_credentials_only_health_and_the_signed_statement_are_to_be_had(
    cluster: Cluster,
) -> None:
    assert cluster.one.https("/readyz") == (200, "ok")
    status, said = cluster.one.https("/api/v1/namespaces/kube-public/configmaps/cluster-info")
    assert status == 200
    assert "jws-kubeconfig-" in said
    assert "PRIVATE" not in said
    for path in ("/version", "/api", "/metrics", "/api/v1/namespaces/kube-public/configmaps"):
        assert cluster.one.https(path)[0] == 401, path


@ours
def test_a_join_token_reads_no_secret(cluster: Cluster) -> None:
    """The token of agents is good for joining and nothing else."""
    kind = "engine.skerry.local/join-token=agent"
    (secret,) = cluster.one.get("secrets", "-n", "kube-system", "-l", kind)["items"]
    assert secret["type"] == "bootstrap.kubernetes.io/token"
    words = {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}
    bearer = f"{words['token-id']}.{words['token-secret']}"
    here = "/api/v1/namespaces/kube-system"
    for path in ("secrets", "secrets/skerry-server-bootstrap", "pods", "configmaps"):
        assert cluster.one.https(f"{here}/{path}", bearer=bearer)[0] == 403, path
    assert cluster.one.https(f"{here}/configmaps/skerry-cluster", bearer=bearer)[0] == 200


def test_secrets_are_root_only_and_not_in_logs(cluster: Cluster) -> None:
    private = ("node-token", "token", "cred/encryption-config.json", "tls/server-ca.key")
    for name in private if not OFFICIAL else private[:3]:
        mode = cluster.one.run("stat", "-L", "-c", "%a", f"{DATA}/server/{name}").strip()
        assert mode == "600", name
    assert cluster.one.run("stat", "-c", "%a", "/etc/rancher/k3s/k3s.yaml").strip() == "600"
    for machine in (cluster.one, cluster.two):
        assert SECRET not in machine.log.read_text()


@ours
def test_with_another_token_who_administered_before_does_so_no_more(cluster: Cluster) -> None:
    """The last of these tests: a server is revoked, and all that it knew is of no use."""
    old, config = cluster.one.shared / "old", cluster.one.shared / "config.yaml"
    old.write_text(cluster.one.run("cat", "/etc/rancher/k3s/k3s.yaml"))
    before = ("/engine", "kubectl", "--kubeconfig", "/data/shared/old")
    assert "three" in cluster.one.run(*before, "get", "nodes")
    other = secrets.token_hex(16)
    config.write_text(_CONFIG.format(secret=other))
    assert cluster.one.stop(cluster.server) == 0
    cluster.start_server()
    assert "Forbidden" in cluster.one.run(*before, "get", "nodes", check=False)
    assert cluster.one.run(*before, "auth", "can-i", "get", "pods", check=False).startswith("no")
    # Nodes that are in stay in, with certificates of their own.
    wait_until(lambda: cluster.ready("one", "two", "three"), 90, "all nodes are ready")
    assert cluster.one.get("secret", "kept")["data"] == {"a": base64.b64encode(b"1").decode()}
    stranger = cluster.two.shared.parent / "late.log"
    words = ["/engine", "server", "--server", SERVER, "--data-dir", "/tmp/late", "--token", SECRET]
    words += ["--node-name", "late", "--node-ip", cluster.two.address]
    assert cluster.two.spawn(words, stranger).wait(90) == 1
    # The second, while what the old token had signed is not yet taken away.
    refusals = r"does not know the token's secret|its secret is not this cluster's"
    assert re.search(refusals, stranger.read_text()), stranger.read_text()
    assert other in cluster.one.run("cat", f"{DATA}/server/node-token")
