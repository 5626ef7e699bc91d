"""The stages of the served graph: each a pure function from named arrays to named arrays."""
