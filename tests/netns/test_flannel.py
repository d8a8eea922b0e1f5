"""Flannel's own daemon over the overlay: pods reach each other through its VXLAN, whole packets."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.netns.flannel import DEVICE, RANGE, Flannel, check_mtu, overlay_of_two
from tests.netns.lab import Lab, run, wait_until
from tests.netns.pods import Pod, link_mtu

# The engine may have to be built first.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]
HEADERS = 28  # IPv4 and ICMP


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def flannel(lab: Lab) -> Iterator[Flannel]:
    with Flannel(overlay_of_two(lab)) as made:
        yield made


@pytest.fixture(scope="module")
def pods(flannel: Flannel) -> list[Pod]:
    one, two = (flannel.bridge(node).pod() for node in flannel.nodes)
    wait_until(lambda: one.reaches(two.address), 30, "the pods reach each other")
    return [one, two]


def ping(pod: Pod, address: str, size: int) -> bool:
    words = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(size), address)
    return " 0% packet loss" in run(*pod.command(*words), check=False)


def test_a_whole_packet_fits_through_both_encapsulations(lab: Lab, pods: list[Pod]) -> None:
    one, two = pods
    node = lab.nodes[0]
    check_mtu(node)
    assert one.bridge.mtu == link_mtu(node, node.interface) - 50
    assert ping(one, two.address, one.bridge.mtu - HEADERS)
    assert not ping(one, two.address, one.bridge.mtu - HEADERS + 1)


def test_it_goes_by_vxlan_inside_the_overlay(lab: Lab, pods: list[Pod]) -> None:
    one, two = pods
    node, other = lab.nodes
    (route,) = json.loads(node.ip("-j", "route", "get", two.address))
    assert route["dev"] == DEVICE
    device = json.loads(node.ip("-j", "-d", "link", "show", DEVICE))[0]
    assert device["linkinfo"]["info_data"]["link"] == node.interface
    (forwarding,) = json.loads(
        run("bridge", "-n", node.namespace, "-j", "fdb", "show", "dev", DEVICE)
    )
    assert forwarding["dst"] == other.overlay_addresses()[0]
    assert two.address.rpartition(".")[0].startswith(RANGE[:6])
    assert one.reaches(two.address)


def test_the_daemon_is_killed_and_comes_again_without_pods_noticing(
    lab: Lab, flannel: Flannel, pods: list[Pod]
) -> None:
    one, two = pods
    node = lab.nodes[0]
    flannel.kill(node)
    assert one.reaches(two.address)
    ready = flannel.said(node).count("flannel is ready")
    flannel.start(node)
    wait_until(
        lambda: flannel.said(node).count("flannel is ready") > ready, 30, "it is ready again"
    )
    assert flannel.bridge_range(node) == str(one.bridge.range)
    assert one.reaches(two.address)
