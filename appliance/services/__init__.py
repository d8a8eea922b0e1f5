"""Services across the overlay: exposed by one node, reached from any (docs/services.md)."""
