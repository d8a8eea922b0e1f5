"""kill -9 of the CNI server at its actions, and pods that come and go in numbers."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.netns.cni import CniLab, CniNode, Pod
from tests.netns.cni_traffic import traffic
from tests.netns.lab import wait_until

pytestmark = pytest.mark.netns

# With a gate: seven steps, a record before each and one when all is done.
ADDING, REMOVING = 15, 6
SAMPLE = ((5, 8, 14), (2, 5))


@pytest.fixture
def lab() -> Iterator[CniLab]:
    with CniLab() as made:
        yield made


def open_gate(node: CniNode) -> None:
    for name in ("pending_v4", "pending_v6"):
        node.nft("flush", "set", "inet", "skerry-pods", name)


def kill_at_every(lab: CniLab, adding: tuple[int, ...], removing: tuple[int, ...]) -> None:
    node = lab.node(gate=True)
    runs, other, pod = lab.pod(), lab.pod(), lab.pod()
    node.call("ADD", runs)
    (address, _) = node.call("ADD", other).addresses
    open_gate(node)
    clean = node.traces()
    with traffic(runs, address):
        for verb, fuses in (("ADD", adding), ("DEL", removing)):
            for fuse in fuses:
                if verb == "DEL":
                    assert node.call("ADD", pod).status == 0
                node.arm(fuse)
                said = node.call(verb, pod)
                assert (said.code, node.died()) == (11, True), (verb, fuse)
                assert node.call("STATUS").code == 50
                node.start()
                # What is begun is finished, before the first call is taken.
                if (verb, fuse) != ("DEL", 0):
                    assert node.traces() == clean, (verb, fuse)
                assert node.call("DEL", pod).status == 0
                assert node.traces() == clean, (verb, fuse)
        # One more action than there are: the fuse does not go off.
        for verb, count in (("ADD", ADDING), ("DEL", REMOVING)):
            node.arm(count)
            assert node.call(verb, pod).status == 0
            assert (node.run_dir / "fuse").read_text() == "0"
            node.arm(None)
        # Without a server nothing stops.
        node.end()
        time.sleep(0.3)
        node.start()
    for one in (runs, other):
        assert node.call("DEL", one).status == 0


def test_a_killed_server_leaves_nothing_and_pods_do_not_notice(lab: CniLab) -> None:
    kill_at_every(lab, *SAMPLE)


@pytest.mark.endurance
@pytest.mark.timeout(600)
def test_a_server_killed_at_every_action_leaves_nothing(lab: CniLab) -> None:
    kill_at_every(lab, tuple(range(ADDING)), tuple(range(REMOVING)))


def kill_while_healing(lab: CniLab, begun: tuple[int, ...], healing: tuple[int, ...]) -> None:
    node = lab.node(gate=True)
    pod = lab.pod()
    clean = node.traces()
    for first in begun:
        for second in healing:
            node.arm(first)
            assert node.call("ADD", pod).code == 11
            assert node.died()
            # It ends itself again before it takes calls, if there is that much to do.
            node.start(fuse=second)
            wait_until(
                lambda: (node.run_dir / "ready").exists() or node.died(), 30, "ready, or dead"
            )
            node.end()
            node.start()
            assert node.traces() == clean, (first, second)


def test_a_server_that_is_killed_while_it_heals_heals_the_next_time(lab: CniLab) -> None:
    kill_while_healing(lab, (8,), (1, 3))


@pytest.mark.endurance
@pytest.mark.timeout(900)
def test_a_server_killed_at_any_two_actions_heals(lab: CniLab) -> None:
    kill_while_healing(lab, tuple(range(1, ADDING, 2)), tuple(range(5)))


def kill_among_many(lab: CniLab, rounds: int) -> None:
    node = lab.node(gate=True)
    runs, other = lab.pod(), lab.pod()
    node.call("ADD", runs)
    (address, _) = node.call("ADD", other).addresses
    open_gate(node)
    clean = node.traces()
    pods = [lab.pod() for _ in range(8)]

    def come_and_go(pod: Pod) -> list[int]:
        """Call until the server is gone, and once more; return the codes."""
        codes: list[int] = []
        while not codes or not codes[-1]:
            codes += [node.call(verb, pod).code for verb in ("ADD", "DEL")]
        return codes

    with traffic(runs, address), ThreadPoolExecutor(len(pods)) as callers:
        for number in range(rounds):
            calls = [callers.submit(come_and_go, pod) for pod in pods]
            time.sleep(0.1 + 0.037 * number)
            node.end(signal.SIGKILL)
            said = {code for call in calls for code in call.result()}
            assert said <= {0, 11}
            node.start()
            # What was whole when it was killed is there; the runtime knows that it saw a failure.
            for pod in pods:
                assert node.call("DEL", pod).status == 0
            assert node.traces() == clean, number
    for one in (runs, other):
        assert node.call("DEL", one).status == 0


def churn(lab: CniLab, count: int, at_a_time: int) -> None:
    node = lab.node(gate=True)
    pods = [lab.pod() for _ in range(at_a_time)]
    clean = node.traces()
    done = 0

    def come_and_go(pod: Pod) -> None:
        assert node.call("ADD", pod).status == 0
        if done % 3:
            assert node.call("DEL", pod).status == 0
            return
        # A runtime that forgets half of it.
        assert node.call("DEL", pod, CNI_NETNS="").status == 0

    with ThreadPoolExecutor(at_a_time) as callers:
        while done < count:
            list(callers.map(come_and_go, pods))
            done += len(pods)
    assert node.traces() == clean
    assert "elements" not in node.nft("list", "table", "inet", "skerry-pods")


def test_a_server_killed_among_many_calls_leaves_nothing(lab: CniLab) -> None:
    kill_among_many(lab, 2)


@pytest.mark.endurance
@pytest.mark.timeout(600)
def test_a_server_killed_again_and_again_leaves_nothing(lab: CniLab) -> None:
    kill_among_many(lab, 20)


def test_pods_come_and_go_without_a_trace(lab: CniLab) -> None:
    churn(lab, 32, 8)


@pytest.mark.endurance
@pytest.mark.timeout(600)
def test_two_hundred_pods_come_and_go_with_all_plugins(lab: CniLab) -> None:
    churn(lab, 200, 8)
    node = lab.nodes[0]
    capabilities = {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 400_000},
    }
    pod = lab.pod()
    links = node.traces()["links"]

    def come_and_go() -> dict[str, object]:
        assert node.tool("add", pod, capabilities=capabilities).status == 0
        assert node.traces()["links"] != links
        assert node.tool("del", pod, capabilities=capabilities).status == 0
        return node.traces()

    # The first one makes portmap's tables, which stay.
    clean = come_and_go()
    assert clean["links"] == links
    for _ in range(50):
        assert come_and_go() == clean
