"""The encrypted overlay: discovery, mutual authentication, addresses, WireGuard."""
