"""The supervisor that runs on the node: life cycle, overlay, API, status."""
