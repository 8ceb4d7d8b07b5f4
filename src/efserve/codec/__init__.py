"""Wire formats of the v2 protocol, without I/O."""
