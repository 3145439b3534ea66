"""What recipes are made of: the identities of a flow map, pairs, tangents, weights and norms."""
