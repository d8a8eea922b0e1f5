"""The ledger: what every node of a network agrees on without a server (docs/ledger.md).

Pure core: `state` (a replica), `reconcile` and `gossip` (keeping replicas alike), `swim` (who is
alive), `claims` (who has which address), `epochs` (who may read on). Edge: `storage` (SQLite).
"""
