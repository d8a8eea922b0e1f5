"""The settings of a network: one form on the wire, nothing that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.settings import (
    Settings,
    SettingsError,
    UnknownSettingError,
    check_room,
    explanations,
    settings_from,
)


def test_only_what_differs_is_written_down() -> None:
    assert Settings().changed() == {}
    settings = Settings(mdns=False, peers=("a:1",), expected_nodes=5)
    assert settings.changed() == {"mdns": False, "peers": ("a:1",), "expected_nodes": 5}
    assert settings_from(settings.changed()) == settings


def test_a_default_that_is_spelled_out_is_a_second_form_and_refused() -> None:
    with pytest.raises(SettingsError, match="spelled out"):
        settings_from({"mdns": True})
    assert settings_from({"mdns": True}, spelled_out=True) == Settings()


def test_an_unknown_setting_asks_for_an_update() -> None:
    with pytest.raises(UnknownSettingError, match="'warp'") as caught:
        settings_from({"warp": 9})
    assert "update" in str(caught.value.hint)


@pytest.mark.parametrize(
    "given_settings",
    [
        {"mdns": 0},
        {"mdns": "no"},
        {"peers": "a:1"},
        {"peers": (1,)},
        {"servers": 1.0},
        {"host_range": None},
        {"host_range": "10.10.0.0"},
        {"host_range": "10.10.0.0/25"},
        {"host_range": "0.0.0.0/0"},
        {"host_range": "fd00::/16"},
        {"host_range": "10.244.128.0/17"},
        {"host_range": "10.96.0.0/12"},
        {"service_cidr": "10.244.7.0/24"},
        {"service_cidr": "10.10.0.0/16"},
        {"service_cidr": "10.96.0.0/25"},
        {"pod_cidr": "10.10.8.0/24"},
        {"pod_cidr": "10.0.0.0/8"},
        {"pod_cidr": "10.244.1.0/16"},
        {"node_bits": 0},
        {"node_bits": -1},
        {"node_bits": 13},
        {"node_bits": 8.0},
        {"pod_cidr": "10.244.0.0/24", "node_bits": 5},
        {"cluster_bits": -1},
        {"cluster_bits": 9},
        {"cluster_bits": True},
        {"service_cidr": "10.96.0.0/24", "cluster_bits": 1},
        {"cni": "calico"},
        {"api_address": "192.168.1.250"},
        {"vpn": False, "api_address": "192.168.1.0/24"},
        {"vpn": False, "api_address": "192.168.01.2"},
        {"vpn": False, "api_address": "fd00::1"},
        {"vpn": False, "api_address": ""},
        {"vpn": False, "api_address": 3232235777},
        {"vpn": False, "api_address": "10.10.7.7"},
        {"vpn": False, "api_address": "10.244.0.1"},
        {"vpn": False, "api_address": "10.9.255.255", "cluster_bits": 1},
        {"vpn": False, "api_address": "127.0.0.1"},
        {"vpn": False, "api_address": "223.255.255.255", "cluster_bits": 1},
        {"vpn": False, "api_address": "255.255.255.255", "cluster_bits": 1},
        {"cni": 1},
        {"expected_nodes": 0},
        {"host_range": "224.0.0.0/8"},
        {"pod_cidr": "169.254.0.0/16"},
        {"service_cidr": "127.0.0.0/8"},
        {"update_server": "https://"},
        {"update_server": "https://[x"},
        {"update_server": "file:///etc/passwd"},
        {"update_server": "https://a/\n"},
        {"peers": tuple(f"a:{number}" for number in range(1, 34))},
    ],
)
def test_what_cannot_be_is_refused(given_settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        settings_from(given_settings)


def test_a_new_network_has_a_pod_range_for_all_that_are_expected() -> None:
    for settings in (Settings(), Settings(expected_nodes=256)):
        check_room(settings)
    with pytest.raises(SettingsError, match=r"expected_nodes 300: .* 256 nodes") as caught:
        check_room(Settings(expected_nodes=300))
    assert caught.value.hint == "choose node_bits 9: each node's range is a /25 then"
    check_room(Settings(expected_nodes=300, node_bits=9))
    with pytest.raises(SettingsError) as caught:
        check_room(Settings(expected_nodes=5000))
    assert "4096 nodes at most (node_bits 12): choose a larger pod_cidr" in str(caught.value.hint)


def test_the_ranges_of_pods_and_services() -> None:
    usual = Settings()
    assert (usual.pod_cidr, usual.node_bits) == ("10.244.0.0/16", 8)
    assert usual.service_cidr == "10.96.0.0/16"
    for pod_cidr, node_bits in (("10.0.0.0/9", 1), ("10.244.0.0/24", 4), ("10.244.0.0/16", 12)):
        settings = Settings(
            pod_cidr=pod_cidr,
            node_bits=node_bits,
            host_range="192.168.0.0/16",
            service_cidr="172.16.0.0/16",
        )
        assert settings_from(settings.changed()) == settings


def test_the_address_of_the_api_is_for_networks_without_a_tunnel() -> None:
    settings = Settings(vpn=False, api_address="192.168.1.250")
    assert settings_from(settings.changed()) == settings
    with pytest.raises(SettingsError, match="is for networks without the tunnel") as caught:
        Settings(api_address="192.168.1.250")
    assert caught.value.hint is not None
    assert "leave it out" in caught.value.hint
    with pytest.raises(SettingsError) as caught:
        Settings(vpn=False, api_address="10.10.7.7")
    assert str(caught.value) == "api_address 10.10.7.7 is inside host_range 10.10.0.0/16"


def test_ranges_that_overlap_are_both_named() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(service_cidr="10.244.7.0/24")
    assert str(caught.value) == "service_cidr 10.244.7.0/24 overlaps pod_cidr 10.244.0.0/16"
    with pytest.raises(SettingsError) as caught:
        Settings(node_bits=13)
    assert caught.value.hint == "choose 1 to 12: each node's share is a /17 to a /28 then"


@pytest.mark.parametrize("peer", ["a.example:1", "192.0.2.1:65535", "[2001:db8::1]:51820"])
def test_peers(peer: str) -> None:
    assert Settings(peers=(peer,)).peers == (peer,)


@pytest.mark.parametrize(
    "peer",
    [
        "",
        "a",
        ":1",
        "a:",
        "a:0",
        "a:65536",
        "a:x",
        "2001:db8::1:51820",
        "[x]:1",
        "a b:1",
        "a:१",
        "http://a:1",
        "u@a:1",
        "a\n:1",
        "a" * 300 + ":1",
        "a:-1",
    ],
)
def test_no_peers(peer: str) -> None:
    with pytest.raises(SettingsError, match="not a peer"):
        Settings(peers=(peer,))


@given(
    st.dictionaries(
        st.sampled_from([one.name for one in explanations()]),
        st.one_of(st.booleans(), st.integers(), st.text(), st.none(), st.tuples(st.text())),
    )
)
def test_any_settings_are_taken_in_one_form_or_refused(changed: dict[str, object]) -> None:
    try:
        settings = settings_from(changed)
    except SettingsError:
        return
    assert settings.changed() == changed


def test_every_setting_explains_itself() -> None:
    kinds = {one.name: one.kind for one in explanations()}
    assert kinds["mdns"] is bool
    assert kinds["peers"] is tuple
    assert kinds["expected_nodes"] is int
    assert kinds["update_server"] is str
    assert all(one.help for one in explanations())
