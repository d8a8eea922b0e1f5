"""Stand-ins for services that a test machine does not have."""
