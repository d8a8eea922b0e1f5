"""Services of a real Kubernetes, offered to the network by an annotation and by hand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from appliance.services.offers import service_address
from image import workloads
from image.board import Architecture
from image.tools import ToolsRoot
from provisioning.settings import Settings
from tests.conformance import images
from tests.conformance.cluster import Carrier
from tests.contract import engine_world
from tests.faults.cluster_world import Clusters
from tests.netns.lab import wait_until
from tests.netns.ledger import together
from tests.netns.services import PORT, Machine, machines, token

pytestmark = [
    pytest.mark.ha,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and containers need root"),
    # The engine and the images may have to be made first.
    pytest.mark.timeout(1800),
]
PATIENCE = 240.0
PROTOCOLS = ("tcp", "udp")
_HOSTNAME = f"/agnhost serve-hostname --http=false --port {PORT}"
_PODS = f"""
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: pod, namespace: default}}
spec:
  replicas: 2
  serviceName: who
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: who}}}}
  template:
    metadata: {{labels: {{app: who}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: who
          image: skerry.local/agnhost:1
          imagePullPolicy: Never
          command: [sh, -c, "touch /tmp/well; {_HOSTNAME} --tcp & exec {_HOSTNAME} --udp"]
          readinessProbe:
            exec: {{command: [test, -e, /tmp/well]}}
            periodSeconds: 1
            failureThreshold: 1
---
apiVersion: v1
kind: Service
metadata: {{name: who, namespace: default}}
spec:
  selector: {{app: who}}
  ports:
    - {{name: tcp, protocol: TCP, port: {PORT}}}
    - {{name: udp, protocol: UDP, port: {PORT}}}
"""


class Worker(Carrier):
    """A node with pods, without an image's add-ons."""

    def _images(self, machine: engine_world.Machine) -> None:
        sources = workloads.Sources(
            Architecture.AMD64, ToolsRoot.ensure().file("/usr/bin/busybox"), "1"
        )
        machine.bring(images.archive(sources))


@dataclass(slots=True)
class Story:
    """A cluster of one server, a member of another cluster, and a machine outside of all."""

    server: Worker
    first: Machine
    far: Machine
    outside: Machine
    network_id: bytes

    def address(self, name: str) -> str:
        return str(service_address(self.network_id, name))

    def offers(self, name: str) -> Mapping[str, set[tuple[str, str]]]:
        """Return what the machine outside sees: protocol to who offers it and how it is."""
        return {
            row["protocol"]: {(node, state) for node, _, state in row["offers"]}
            for row in self.outside.listed()["services"]
            if row["name"] == name
        }

    def well(self, *, pods: int) -> None:
        """Have so many of the two pods be ready."""
        for number in range(2):
            verb = ("touch",) if number < pods else ("rm", "-f")
            self.server.kubectl("exec", f"pod-{number}", "--", *verb, "/tmp/well")
        wait_until(lambda: self.ready() == pods, PATIENCE, f"{pods} pods are ready", every=0.5)

    def pod_hears(self, address: str, expected: set[str]) -> None:
        """Have a pod of the server ask, by TCP and UDP, until it heard all of these; none else."""
        nc = f"nc -w 1 {address} {PORT}"
        line = f"for n in 1 2 3; do {nc} </dev/null; echo; echo who | {nc} -u; echo; done"
        heard: set[str] = set()

        def ask() -> bool:
            said = self.server.kubectl("exec", "pod-0", "--", "sh", "-c", line)
            heard.update(said.split())
            assert heard <= expected, heard
            return heard == expected

        wait_until(ask, 60, f"a pod hears {expected}")

    def ready(self) -> int:
        found = self.server.kubectl("get", "pods", "-l", "app=who", "-o", "json", check=False)
        items = json.loads(found)["items"] if found.startswith("{") else []
        states = [one["status"].get("containerStatuses") or [{}] for one in items]
        return sum(bool(one[0].get("ready")) for one in states)


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with Clusters.made(Settings(cluster_bits=4)) as nodes, ExitStack() as stack:
        server = Worker(nodes.lab.node(), nodes.world, nodes.folder / "server")
        nodes.nodes.append(server)
        far, outside = nodes.lab.crowd(2)
        server.start(token(nodes.operator, founder=True))
        far.start(token(nodes.operator, cluster="far"))
        outside.start(token(nodes.operator, "none"))
        wait_until(lambda: server.role == "server" and server.nodes(), PATIENCE, "a cluster")
        nodes.say("there is a Kubernetes")
        assert server.machine is not None
        (server.machine.shared / "pods.yaml").write_text(_PODS)
        server.kubectl("apply", "-f", "/data/shared/pods.yaml")
        together([server.node, far, outside], PATIENCE)
        options = ("--kubernetes", str(server.places.run_dir / "services.json"))
        tools = server.machine.scratch / "tools"
        first = Machine(server.node, *options, data=server.places.services_dir, tools=tools)
        stack.callback(first.close)
        second, third = stack.enter_context(machines(far, outside))
        made = Story(server, first, second, third, nodes.operator.info.network_id)
        wait_until(lambda: made.ready() == 2, PATIENCE, "pods are ready", every=0.5)
        nodes.say("the pods are ready")
        try:
            yield made
        except BaseException:
            print(first.log(), file=sys.stderr)
            raise


def test_an_annotated_service_is_reached_from_outside_as_well_as_it_is(story: Story) -> None:
    server, far, outside = story.server, story.far, story.outside
    address = story.address("who")
    assert story.offers("who") == {}
    words = ("annotate", "service", "who", "skerry/expose=who:tcp, who:udp")
    server.kubectl(*words)
    outside.do("connect", "who")
    up = {(server.name, "up")}
    wait_until(lambda: story.offers("who") == dict.fromkeys(PROTOCOLS, up), 60, "it is offered")
    for protocol in PROTOCOLS:
        outside.until(address, protocol, {"pod-0", "pod-1"}, 60)
    story.well(pods=1)
    for protocol in PROTOCOLS:
        outside.until(address, protocol, {"pod-0"}, 60)
    # Another cluster has one too: the own comes first, and an outsider has everybody's.
    far.serve("far")
    for protocol in PROTOCOLS:
        far.do("expose", "who", "--port", str(PORT), "--protocol", protocol)
    story.first.do("connect", "who")
    for protocol in PROTOCOLS:
        outside.until(address, protocol, {"pod-0", "far"}, 60)
        story.first.until(address, protocol, {"pod-0"}, 60)
    # Nobody of the own cluster is left: over to the other one.
    story.well(pods=0)
    down = {(server.name, "no answer"), (far.node.name, "up")}
    wait_until(lambda: story.offers("who") == dict.fromkeys(PROTOCOLS, down), 60, "it is down")
    for protocol in PROTOCOLS:
        story.first.until(address, protocol, {"far"}, 60)
        outside.until(address, protocol, {"far"}, 60)
    story.pod_hears(address, {"far"})
    story.well(pods=2)
    for protocol in PROTOCOLS:
        story.first.until(address, protocol, {"pod-0", "pod-1"}, 60)
    # From a pod as well, to another of its node, and to itself.
    story.pod_hears(address, {"pod-0", "pod-1"})
    # Without the annotation it is no longer offered.
    server.kubectl("annotate", "service", "who", "skerry/expose-")
    wait_until(lambda: (server.name, "up") not in story.offers("who")["tcp"], 60, "no more")
    outside.until(address, "tcp", {"far"}, 60)


def test_a_person_exposes_a_service_of_kubernetes_by_hand(story: Story) -> None:
    words = ("--port", "7171", "--to", "k8s:default/who:tcp")
    story.first.do("expose", "byhand", *words)
    story.outside.do("connect", "byhand", "--port", str(PORT))
    story.outside.until(story.address("byhand"), "tcp", {"pod-0", "pod-1"}, 60)
    story.first.do("rm", "byhand")
    wait_until(lambda: story.offers("byhand").get("tcp", set()) == set(), 60, "it is gone")
