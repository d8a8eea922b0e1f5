"""Which range of services a cluster has: from its name alone, and never another's."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from provisioning.clusters import CLUSTER_LABEL, cluster_of, rivals, services_of
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
