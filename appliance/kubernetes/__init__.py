"""The cluster agent: what makes Kubernetes happen on a node (docs/kubernetes.md).

A root process of its own, a client of the supervisor's local API. `keeper`, `part`, `credentials`
and `records` decide and touch nothing; `agent` is the loop that feeds them and performs what they
say. It may be killed at any time: everything it needs it finds again.
"""
