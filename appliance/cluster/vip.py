"""The API's one address: held by the server that leads, as everybody in the overlay sees it.

Each cluster has one (`provisioning.clusters.api_address_of`), which no node is given. A server
whose engine leads in a term claims it (`cluster_entries.Vip`); the claim of the highest term
counts, so a leader of old that comes back has nothing. The term is the engine's lease, which a
majority of its servers gave. With a tunnel, members put the address into the holder's AllowedIPs;
the holder puts it on an interface of its own, without a tunnel on the LAN's.

A claim counts for the claimant's own cluster, which is its grant's word: so nobody takes another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from appliance.cluster.cluster_entries import BUCKET, VERSION, Vip, read
from appliance.cluster.cluster_entries import VIP as KIND
from appliance.ledger.said import Said

END = f"/{KIND}"


def concerns(bucket: str, key: str) -> bool:
    """Say whether an entry may change who holds it."""
    return bucket == BUCKET and key.endswith(END)


def claims(said: Iterable[Said], able: Iterable[bytes]) -> dict[bytes, Vip]:
    """Return the claims of those who may be servers of one cluster."""
    who = set(able)
    return {node: one for node, one in read(said).vips.items() if node in who}


def holder(found: Mapping[bytes, Vip]) -> bytes | None:
    """Return who holds the address: the highest term, then the lowest node id.

    Nobody looks whether that one lives: if it does not, nobody has the address until the next
    leader claims it. A guess would be a second one.
    """
    if not found:
        return None
    return min(found, key=lambda node: (-found[node].term, node))


def claim(
    own: bytes, cluster_id: bytes, term: int, found: Mapping[bytes, Vip], now_ms: int
) -> Vip | None:
    """Return what a leader whose API answers has to say, if anything."""
    mine = found.get(own)
    if mine is not None and (mine.cluster_id, mine.term) == (cluster_id, term):
        return None
    return Vip(VERSION, cluster_id, term, now_ms)
