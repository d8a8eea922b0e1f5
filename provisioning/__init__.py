"""Token, identity and certificates, token sources on the node, personalising media."""
