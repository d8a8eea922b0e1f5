"""Kubernetes on the overlay (docs/cluster.md): so far only decisions, nothing that acts."""
