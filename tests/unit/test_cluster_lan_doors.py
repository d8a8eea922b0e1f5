"""Without a tunnel the packet filter lets members in, and the LAN's machines to the API."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from appliance import programs
from appliance.kubernetes import lan_doors
from appliance.kubernetes.facts import Cluster
from appliance.kubernetes.lan_doors import AGAIN_SECONDS, LanDoors
from appliance.kubernetes.observing import Observer
from tests.fakes.cluster_world import make_world
from tests.fakes.lan import Machine, Switch

pytestmark = pytest.mark.anyio
FIREWALL = Path(__file__).resolve().parents[2] / "rootfs_overlay/usr/share/skerry/firewall.nft"
OPEN = """flush set inet skerry lan_members
flush chain inet skerry lan_api
add element inet skerry lan_members { 192.168.1.1, 192.168.1.2 }
add rule inet skerry lan_api ip saddr 192.168.1.0/24 accept
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def cluster(folder: Path, *, vpn: bool = False) -> Cluster:
    world = make_world(folder, members=3)
    for number, row in enumerate(world.supervisor.document["members"], 1):
        row["addresses"] = [f"192.168.1.{number}", f"2001:db8::{number}"]
    world.supervisor.document["members"][2]["roles"] = ["none"]
    world.supervisor.document |= {"vpn": vpn, "addresses": ["192.168.1.1"]}
    return (await Observer(world.supervisor).observe()).cluster


def test_the_filter_has_the_sets_and_pods_are_sent_off_before() -> None:
    text = FIREWALL.read_text()
    assert (
        "\n    set lan_members {\n        type ipv4_addr\n    }\n    chain lan_api {\n    }\n"
        in text
    )
    pods = text.index('iifname "skerry-pods" jump')
    assert pods < text.index("ip saddr @lan_members tcp dport { 2379, 2380, 6443, 10250 } accept")
    assert pods < text.index("        tcp dport 6443 jump lan_api\n")
    assert pods < text.index("ip saddr @lan_members udp dport 8472 accept")


async def test_members_reach_all_and_the_lan_a_server_that_serves(tmp_path: Path) -> None:
    known = await cluster(tmp_path)
    laid: list[str] = []
    now = [0.0]
    doors = LanDoors(Machine(Switch(), 1), laid.append, lambda: now[0])
    await doors.keep(known, serves=True)
    assert laid == [OPEN]
    now[0] = AGAIN_SECONDS - 1
    await doors.keep(known, serves=True)
    assert len(laid) == 1
    await doors.keep(known, serves=False)
    assert laid[1] == OPEN.replace(
        "add rule inet skerry lan_api ip saddr 192.168.1.0/24 accept\n", ""
    )
    # A filter that was loaded anew is opened again.
    now[0] += AGAIN_SECONDS
    await doors.keep(known, serves=False)
    assert laid[2] == laid[1]


async def test_with_a_tunnel_or_without_an_address_nothing_is_done(tmp_path: Path) -> None:
    laid: list[str] = []
    doors = LanDoors(Machine(Switch(), 1), laid.append, lambda: 0.0)
    known = await cluster(tmp_path, vpn=True)
    await doors.keep(known, serves=True)
    document = msgspec.structs.replace(known.document, vpn=False, addresses=())
    await doors.keep(replace(known, document=document), serves=True)
    assert laid == []


async def test_a_filter_that_is_not_ours_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = await cluster(tmp_path)
    laid: list[str] = []

    def lay(text: str) -> None:
        laid.append(text)
        raise programs.RefusedError("nft says: no such table")

    doors = LanDoors(Machine(Switch(), 1), lay, lambda: 0.0)
    await doors.keep(known, serves=True)
    await doors.keep(known, serves=True)
    assert len(laid) == 2
    assert caplog.text.count("is not opened for Kubernetes: nft says: no such table") == 1


def test_what_is_no_address_never_gets_into_nft() -> None:
    with pytest.raises(ipaddress.AddressValueError):
        lan_doors.text(["1.2.3.4 } ; flush ruleset"], [])
    assert (
        lan_doors.text([], [])
        == "flush set inet skerry lan_members\nflush chain inet skerry lan_api\n"
    )
