"""Names of members: `NODE.skerry.internal`, answered on the node itself (docs/names.md)."""
