"""The set of entry ids as a hash tree over 4-bit prefixes, so that two sets compare by ranges.

A range is a prefix of nibbles. Its digest is a hash over the digests below it, not a sum: sums of
hashes are quick to keep but a member that makes entries at will can solve for two sets with the
same sum (Wagner's k-sum attack) and so hide somebody else's entry from reconciliation. The tree's
shape depends on the set alone: a range of LEAF ids or fewer is a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

LEAF = 16
DIGEST_SIZE = 16
DEPTH_MAX = 32
EMPTY = bytes(DIGEST_SIZE)

Prefix = tuple[int, ...]


class _Node:
    __slots__ = ("children", "count", "digest", "ids")

    def __init__(self) -> None:
        self.count = 0
        self.digest: bytes | None = EMPTY
        self.ids: set[bytes] | None = set()
        self.children: list[_Node | None] | None = None


class Trie:
    """A set of 16-byte ids; `add` and `remove` cost O(log n), digests are made when asked for."""

    def __init__(self) -> None:
        self._root = _Node()

    def __len__(self) -> int:
        return self._root.count

    def add(self, entry_id: bytes) -> None:
        """Add an id that is not in the set."""
        node, depth = self._root, 0
        while True:
            node.count += 1
            node.digest = None
            if node.ids is not None:
                node.ids.add(entry_id)
                if len(node.ids) > LEAF and depth < DEPTH_MAX:
                    _split(node, depth)
                return
            assert node.children is not None  # noqa: S101 - no leaf, so it has children
            nibble = _nibble(entry_id, depth)
            child = node.children[nibble]
            if child is None:
                child = node.children[nibble] = _Node()
            node, depth = child, depth + 1

    def remove(self, entry_id: bytes) -> None:
        """Remove an id that is in the set."""
        node, depth = self._root, 0
        while node.ids is None:
            node.count -= 1
            node.digest = None
            if node.count <= LEAF:
                node.ids = set(_ids(node)) - {entry_id}
                node.children = None
                return
            assert node.children is not None  # noqa: S101 - no leaf, so it has children
            nibble = _nibble(entry_id, depth)
            child = node.children[nibble]
            assert child is not None  # noqa: S101 - the id is in the set
            if child.count == 1:
                node.children[nibble] = None
                return
            node, depth = child, depth + 1
        node.count -= 1
        node.digest = None
        node.ids.remove(entry_id)

    def digest(self, prefix: Prefix = ()) -> bytes:
        """Return the digest of a range."""
        return _digest(self._find(prefix))

    def count(self, prefix: Prefix = ()) -> int:
        """Return how many ids a range holds."""
        node = self._find(prefix)
        return node.count if isinstance(node, _Node) else len(node)

    def ids(self, prefix: Prefix = ()) -> list[bytes]:
        """Return the ids of a range in order."""
        node = self._find(prefix)
        return sorted(_ids(node) if isinstance(node, _Node) else node)

    def _find(self, prefix: Prefix) -> _Node | list[bytes]:
        """Return a range: a node of the tree, or the ids of it that lie inside a leaf."""
        node = self._root
        for depth, nibble in enumerate(prefix):
            if node.ids is not None:
                rest = prefix[depth:]
                return [
                    one
                    for one in node.ids
                    if all(_nibble(one, depth + at) == want for at, want in enumerate(rest))
                ]
            assert node.children is not None  # noqa: S101 - no leaf, so it has children
            child = node.children[nibble]
            if child is None:
                return []
            node = child
        return node


def _split(node: _Node, depth: int) -> None:
    assert node.ids is not None  # noqa: S101 - only leaves are split
    node.children = [None] * 16
    for entry_id in node.ids:
        nibble = _nibble(entry_id, depth)
        child = node.children[nibble]
        if child is None:
            child = node.children[nibble] = _Node()
        assert child.ids is not None  # noqa: S101 - just made
        child.ids.add(entry_id)
        child.count += 1
        child.digest = None
    node.ids = None
    for child in node.children:
        if child is not None and child.count > LEAF and depth + 1 < DEPTH_MAX:
            _split(child, depth + 1)


def _ids(node: _Node) -> Iterator[bytes]:
    if node.ids is not None:
        yield from node.ids
    else:
        for child in node.children or ():
            if child is not None:
                yield from _ids(child)


def _digest(node: _Node | list[bytes]) -> bytes:
    if not isinstance(node, _Node):
        return _leaf_digest(node)
    if node.digest is None:
        if node.ids is not None:
            node.digest = _leaf_digest(node.ids)
        else:
            parts = [EMPTY if one is None else _digest(one) for one in node.children or ()]
            node.digest = hashlib.sha256(b"\x01" + b"".join(parts)).digest()[:DIGEST_SIZE]
    return node.digest


def _leaf_digest(ids: list[bytes] | set[bytes]) -> bytes:
    if not ids:
        return EMPTY
    return hashlib.sha256(b"\0" + b"".join(sorted(ids))).digest()[:DIGEST_SIZE]


def _nibble(entry_id: bytes, depth: int) -> int:
    byte = entry_id[depth >> 1]
    return byte & 15 if depth & 1 else byte >> 4
