"""Container images that a node brings along: from archives on its disk into containerd."""
