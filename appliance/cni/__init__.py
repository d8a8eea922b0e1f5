"""Pod networking: what our CNI plugin asks for is decided and done here."""
