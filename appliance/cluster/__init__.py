"""Kubernetes on the overlay (docs/cluster.md): what is decided about it; nothing here acts."""
