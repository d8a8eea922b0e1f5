"""Which range of services a cluster has: from its name alone, and never another's."""

from __future__ import annotations

import ipaddress

import hypothesis
from hypothesis import given
from hypothesis import strategies as st

from provisioning.clusters import (
    CLUSTER_LABEL,
    api_address_of,
    api_addresses_kept,
    cluster_of,
    rivals,
    services_of,
)
from provisioning.settings import Settings

SIXTEEN = Settings(cluster_bits=4)
NAMES = st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True)


def test_the_formula_is_as_documented() -> None:
    """docs/cluster.md has these."""
    assert str(services_of(SIXTEEN, "")) == "10.96.0.0/20"
    assert str(services_of(SIXTEEN, "blue")) == "10.96.192.0/20"
    assert str(services_of(Settings(), "")) == "10.96.0.0/16"


def test_the_cluster_is_what_the_grant_says() -> None:
    assert cluster_of({}) == ""
    assert cluster_of({"site": "attic", CLUSTER_LABEL: "blue"}) == "blue"


@given(st.sets(NAMES, max_size=8), st.integers(0, 8))
def test_ranges_are_disjoint_but_for_those_that_are_called_rivals(
    names: set[str], bits: int
) -> None:
    settings = Settings(cluster_bits=bits)
    whole = ipaddress.IPv4Network(settings.service_cidr)
    clusters = sorted({"", *names})
    for one in clusters:
        found = services_of(settings, one)
        assert found.subnet_of(whole)
        assert found.prefixlen == 16 + bits
        same = {two for two in clusters if two != one and services_of(settings, two) == found}
        overlapping = {
            two for two in clusters if two != one and services_of(settings, two).overlaps(found)
        }
        assert set(rivals(settings, one, clusters)) == same == overlapping
    # The one without a name is nobody's rival where there is room for more than it.
    assert not bits or not rivals(settings, "", clusters)


def test_each_cluster_has_an_address_of_its_api_as_documented() -> None:
    assert str(api_address_of(Settings(), "")) == "10.10.0.1"
    assert str(api_address_of(SIXTEEN, "")) == "10.10.0.1"
    assert str(api_address_of(SIXTEEN, "blue")) == "10.10.0.13"
    without = Settings(vpn=False, cluster_bits=4)
    assert api_address_of(without, "") is None
    without = Settings(vpn=False, cluster_bits=4, api_address="192.168.1.200")
    assert str(api_address_of(without, "")) == "192.168.1.200"
    assert str(api_address_of(without, "blue")) == "192.168.1.212"


@hypothesis.settings(max_examples=40)
@given(st.sets(NAMES, max_size=4), st.integers(0, 8), st.booleans())
def test_addresses_differ_but_those_of_rivals(names: set[str], bits: int, vpn: bool) -> None:
    lan = None if vpn else "192.168.1.1"
    settings = Settings(cluster_bits=bits, vpn=vpn, api_address=lan)
    clusters = sorted({"", *names})
    for one in clusters:
        address = api_address_of(settings, one)
        assert address is not None
        same = {two for two in clusters if two != one and api_address_of(settings, two) == address}
        assert same == set(rivals(settings, one, clusters))
        hosts = ipaddress.IPv4Network(settings.host_range)
        place = int(address) - int(hosts.network_address)
        assert not vpn or 1 <= place <= api_addresses_kept(settings)


def test_a_small_range_keeps_a_quarter_for_apis_and_some_clusters_have_none() -> None:
    small = Settings(host_range="10.10.0.0/24", cluster_bits=8)
    assert api_addresses_kept(Settings()) == 1
    assert api_addresses_kept(SIXTEEN) == 16
    assert api_addresses_kept(small) == 64
    found = [api_address_of(small, f"n{number}") for number in range(100)]
    assert None in found
    assert max(one for one in found if one) <= ipaddress.IPv4Address("10.10.0.64")
