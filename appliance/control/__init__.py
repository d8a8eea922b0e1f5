"""The control plane of a node: what it does with what the ledger says.

`plane` ties the overlay's core and the ledger's gossip together; `admission`, `addressing` and
`keyring` are its decisions; `service` performs what they want.
"""
