"""Training of a cross-encoder on groups of one query with its documents."""
