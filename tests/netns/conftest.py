"""A lab with a CNI server, one per module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.cni import CniLab, CniNode


@pytest.fixture(scope="module")
def cni_lab() -> Iterator[CniLab]:
    with CniLab() as made:
        yield made


@pytest.fixture(scope="module")
def shared_cni_node(cni_lab: CniLab) -> CniNode:
    return cni_lab.node()


@pytest.fixture
def node(shared_cni_node: CniNode) -> Iterator[CniNode]:
    """A node of the module's CNI lab; whatever a test did there is gone afterwards."""
    before = shared_cni_node.traces()
    yield shared_cni_node
    assert shared_cni_node.traces() == before
