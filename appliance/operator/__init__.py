"""The operator's side of a network's life: what the root key says, and how it gets to the nodes."""
